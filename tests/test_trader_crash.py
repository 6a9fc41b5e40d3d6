"""kill -9 of the session at every journal boundary, then a restart: invariants 1 to 5 hold each time.

Enumerated, not sampled: boundary n is the moment before or after the n-th commit. A fresh process is forked for every
boundary from a parent that has everything imported and compiled, so that a life takes a fraction of a second.
"""

import json
import os
import signal
import sys
import traceback
from collections import Counter
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import yaml
from markets import BUSY, synthetic

from scalp_nb.broker.paper import PaperBroker
from scalp_nb.feed.depth import empty_depth
from scalp_nb.feed.recorder import write_parquet
from scalp_nb.order.types import OrderState, Purpose
from scalp_nb.trader.config import load_config
from scalp_nb.trader.journal import payload
from scalp_nb.trader.replay import replay_run
from scalp_nb.trader.session import run_session
from scalp_nb.trader.setup import RunConfig, load_market, paper_config
from scalp_nb.trader.store import Store

TAPE = {"seconds": 420, "seed": 5, "episode_every_s": 30.0, "episode_s": 20.0}


@pytest.fixture(scope="module")
def tape(tmp_path_factory):
    rows, uni = synthetic(n_symbols=2, **TAPE)
    path = tmp_path_factory.mktemp("tape") / "tape.parquet"
    write_parquet(rows, uni, path)
    return path


def config_for(tape: Path, **over):
    return load_config(RunConfig, None, BUSY | {"data.recording": str(tape), "risk.max_trades_per_day": 3, "exits.time_stop_s": 20.0,
                                                "run.account": "crash", "sizing.fixed_qty": 5} | over)


def life(cfg: RunConfig, run_dir: Path, crash_at: int = 0) -> int:
    """One incarnation in a forked process; its exit status, negative when killed."""
    run_dir.mkdir(exist_ok=True)
    (run_dir / "config.yaml").write_text(yaml.safe_dump(json.loads(cfg.model_dump_json())))
    pid = os.fork()
    if pid == 0:
        try:
            os.environ.pop("SCALP_CRASH_AT", None)
            if crash_at:
                os.environ["SCALP_CRASH_AT"] = str(crash_at)
            code = run_session(cfg, run_dir)
        except BaseException:
            traceback.print_exc()
            code = 99
        sys.stderr.flush()
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def venue_of(cfg: RunConfig, run_dir: Path) -> PaperBroker:
    universe = load_market(cfg).universe
    return PaperBroker(universe, paper_config(cfg), empty_depth(len(universe)), log=run_dir / "venue.jsonl")


def at_crash(cfg: RunConfig, run_dir: Path):
    """What the venue has, and which intents are durable, right after the kill."""
    venue = venue_of(cfg, run_dir)
    sent = {json.loads(line)["id"] for line in (run_dir / "venue.jsonl").read_text().splitlines() if '"submit"' in line}
    positions = {v.intent.symbol for ws in venue.venue.ex.live.values() for v in ws if v.intent.purpose is Purpose.STOP}
    held = {cfg_symbol for cfg_symbol, q, _ in venue.state(max((u.ts for u in venue.venue.fills), default=0)).positions if q}
    venue.close(0)
    return sent, held, held - positions


def check(cfg: RunConfig, run_dir: Path, unprotected: set[str]) -> None:
    store = Store.open(run_dir / "store.db", "crash", exclusive=False)
    assert store.verify().ok
    intents, fills = store.intents(), store.fills()
    venue = venue_of(cfg, run_dir)
    theirs = venue.venue
    assert len({i.id for i in intents}) == len(intents) and len({i.seq for i in intents}) == len(intents)       # 2: an intent once
    assert Counter((u.client_id, u.exec_id) for u in theirs.fills) == Counter((f.client_id, f.exec_id) for f, _, _ in fills)  # 3: a fill once
    cash = Decimal(paper_config(cfg).cash) - sum((f.side * f.qty * f.px + fee for f, fee, _ in fills), Decimal(0))
    assert theirs.cash == cash                                                                                   # 4: money
    assert not [p for p in theirs.pos.values() if p.qty] and not any(theirs.ex.live.values())                    # flat, nothing works
    assert all(o.state not in (OrderState.INTENT, OrderState.SENT, OrderState.UNKNOWN) for o in store.orders())
    records = list(store.records())
    begins = [r for r in records if r.kind == "event:Started"]
    if unprotected and len(begins) > 1:                                                                          # 5: protected at once
        after = [payload(r) for r in records if r.seq > begins[-1].seq]
        early = [c.intent for c in after[:40] if type(c).__name__ == "Submit"]
        assert unprotected <= {i.symbol for i in early if i.purpose is not Purpose.ENTRY}, (unprotected, early)
    venue.close(0)


def test_kill_at_every_boundary(tape, tmp_path):
    cfg = config_for(tape)
    assert life(cfg, tmp_path / "whole") == 0
    store = Store.open(tmp_path / "whole" / "store.db", "crash", exclusive=False)
    assert len(store.fills()) >= 4, "the tape makes trades"
    check(cfg, tmp_path / "whole", set())
    n = crashes = 0
    while True:
        n += 1
        run_dir = tmp_path / f"run{n}"
        status = life(cfg, run_dir, crash_at=n)
        if status == 0:
            break
        assert status == -signal.SIGKILL, f"boundary {n}: status {status}"
        crashes += 1
        if (run_dir / "venue.jsonl").exists():
            sent, _, unprotected = at_crash(cfg, run_dir)
            durable = {i.id for i in Store.open(run_dir / "store.db", "crash", exclusive=False).intents()}
            assert sent <= durable, f"boundary {n}: sent before it was durable: {sent - durable}"  # 1
        else:
            unprotected = set()
        assert life(cfg, run_dir) == 0, f"boundary {n}: the restart did not end flat"
        check(cfg, run_dir, unprotected)
        result = replay_run(run_dir)
        assert result.ok, f"boundary {n}: record {result.seq}: {result.first}"
    assert crashes > 30


def test_a_run_that_ended_is_not_run_again_in_silence(tape, tmp_path):
    cfg = config_for(tape)
    assert life(cfg, tmp_path / "r") == 0
    before = Store.open(tmp_path / "r" / "store.db", "crash", exclusive=False).fills()
    assert life(cfg, tmp_path / "r") == 0
    assert Store.open(tmp_path / "r" / "store.db", "crash", exclusive=False).fills() == before


@pytest.mark.parametrize("faults", [{"lost_ack_prob": 0.5}, {"reject_prob": 0.3, "duplicate_update_prob": 0.5}])
def test_two_crashes_under_venue_faults(tape, tmp_path, faults):
    cfg = config_for(tape, paper=faults)
    rng = np.random.default_rng(3)
    for k in range(4):
        run_dir = tmp_path / f"f{k}"
        for at in rng.integers(3, 40, 2):
            life(cfg, run_dir, crash_at=int(at))
        assert life(cfg, run_dir) == 0
        check(cfg, run_dir, set())


GROWING = {"sizing.fixed_qty": 20, "risk.max_trades_per_day": 1}


def in_doubt(run_dir: Path) -> set[str]:
    """Orders with a change that the journal asked for and has no outcome of; terms at the venue are the old ones or those."""
    store = Store.open(run_dir / "store.db", "crash", exclusive=False)
    asked = {}
    for r in store.records():
        if r.kind == "command:Modify": asked[payload(r).client_id] = payload(r).terms
        if r.kind == "event:Evidence" and payload(r).update.kind.value.startswith("modif"): asked.pop(payload(r).update.client_id, None)
    return set(asked)


def changes_sent(run_dir: Path) -> Counter:
    lines = [json.loads(line) for line in (run_dir / "venue.jsonl").read_text().splitlines()]
    return Counter((x["id"], x["intent"]["qty"]) for x in lines if x["k"] == "wire" and x["op"] == "modify")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("faults", [{}, {"lost_ack_prob": 0.5}], ids=["quiet", "lost answers"])
def test_kill_at_every_boundary_while_a_stop_grows(tape, tmp_path, faults):
    """An entry that fills in pieces: its stop is changed again and again, and the process dies before and after each of its commits."""
    cfg = config_for(tape, **GROWING, paper={"partial_prob": 0.8} | faults, **{"run.seed": 7 if faults else 0})
    assert life(cfg, tmp_path / "whole") == 0
    assert sum(changes_sent(tmp_path / "whole").values()) >= 3, "the tape makes changes"
    check(cfg, tmp_path / "whole", set())
    n = doubted = 0
    while True:
        n += 3 if faults else 1
        run_dir = tmp_path / f"run{n}"
        status = life(cfg, run_dir, crash_at=n)
        if status == 0: break
        assert status == -signal.SIGKILL, f"boundary {n}: status {status}"
        unprotected = set()
        if (run_dir / "venue.jsonl").exists():
            _, _, unprotected = at_crash(cfg, run_dir)
            store = Store.open(run_dir / "store.db", "crash", exclusive=False)
            asked = Counter((r.client_id, str(r.terms.qty)) for r in (payload(x) for x in store.records() if x.kind == "command:Modify"))
            assert changes_sent(run_dir) <= asked, f"boundary {n}: a change was sent before it was durable"  # 1
            doubted += bool(in_doubt(run_dir))
        assert life(cfg, run_dir) == 0, f"boundary {n}: the restart did not end flat"
        check(cfg, run_dir, unprotected)
        assert max(changes_sent(run_dir).values(), default=1) == 1, "a change was sent again"
        result = replay_run(run_dir)
        assert result.ok, f"boundary {n}: record {result.seq}: {result.first}"
    assert doubted >= (1 if faults else 3), "no death in the middle of a change"
