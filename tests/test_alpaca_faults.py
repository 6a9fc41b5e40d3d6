"""Fault runs at the Alpaca practice venue: three seeds in every build, more than a thousand in `make soak`, and what earlier ones found."""

import shutil
import subprocess
import sys
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("alpaca")

from alpaca_faults import CRYPTO, HOUSE, config_of, tape_of  # noqa: E402
from alpaca_live import until, venue  # noqa: E402
from fault_checks import kept as grown  # noqa: E402
from fault_checks import protected  # noqa: E402
from fault_runs import CHECKS, House, Line, broken, conserved, counted, durable, fresh, latched, once, play, replayed, run_seed, unspoken  # noqa: E402

from scalp_nb.feed.alpaca import AlpacaFeed, AlpacaFeedConfig  # noqa: E402
from scalp_nb.order.types import Terms, Update, UpdateKind  # noqa: E402
from scalp_nb.practice.alpaca import PracticeServer  # noqa: E402
from scalp_nb.practice.faults import read_script  # noqa: E402
from scalp_nb.trader.events import Evidence, Modify  # noqa: E402
from scalp_nb.trader.streaming import new_recorder, recorded_rows  # noqa: E402

FOUND = {
    2: "a feed that came back after a silence switched entries on although the broker was down",
    13: "a candidate that was waiting when the connection went down was sent all the same",
    17: "a decision window that closed by itself let time jump to the next timer: the replay differed",
    38: "the update stream was down, and its last word on a position was believed against newer executions",
}


def holds(seed: int, house: House = HOUSE) -> None:
    out = run_seed(house, seed)
    assert out.broken == [], f"again: python {house.script} --seed {seed} -v"
    assert out.faults and out.fills, "a run without faults or fills shows nothing"


@pytest.mark.parametrize("seed", [17, 38, 1003])
def test_three_seeds(seed: int) -> None: holds(seed)


@pytest.mark.parametrize("seed", [0, 3])
def test_two_seeds_of_crypto(seed: int) -> None: holds(seed, CRYPTO)


@pytest.mark.soak
@pytest.mark.parametrize("seed", FOUND)
def test_seeds_that_found_something(seed: int) -> None: holds(seed)


def test_a_broken_invariant_is_seen(tmp_path: Path) -> None:
    """The checks can fail: each is shown a story in which its invariant is broken."""
    tape = tape_of(1)
    s = play(HOUSE, tmp_path, config_of(0, tape), tape, read_script([{"fault": "update_lost", "match": "fill"}]))
    assert broken(s) == [] and s.of("note:fill")
    judge = {"1": durable, "2": once, "3": counted, "4": conserved, "5": protected, "6": fresh, "7": latched, "8": durable, "9": replayed,
             "10": unspoken}
    assert {*judge.values(), grown} == {*CHECKS}
    def finds(n: str, words: str = "") -> bool: return any(x.startswith(f"{n}:") and words in x for x in judge[n](s))
    submits = s.of("command:Submit")
    first, entry = submits[0].data.intent.id, submits[0]
    s.seen.early.append(first)
    assert finds("1", "before its intent was on disk")
    s.seen.early.clear()
    s.seen.posts[first] += 1
    assert finds("2", "sent 2 times")
    s.seen.posts[first] -= 1
    lost = s.truth["executions"].pop()
    assert finds("3", "not at the venue") and finds("4", "by its executions")
    s.truth["executions"].append(lost)
    kept, placed, executions = s.records, s.placed, s.truth["executions"]
    terms, over = Terms(Decimal(5), Decimal(1), Decimal(2)), kept[-1].ts + 10**12
    s.seen.changes[first, terms.qty] += 1
    assert any(x.startswith("2:") and "arrived 1 times, asked for 0" in x for x in grown(s))
    s.records = [*kept, Line(0, over, "command:Modify", Modify(first, terms, "resize")),
                 Line(0, over, "event:Evidence", Evidence(over, Update(over, first, UpdateKind.MODIFIED, terms=terms)))]
    assert [x.startswith("5:") and "not at the venue while it was changed" in x for x in grown(s)] == [True]
    s.seen.changes.clear()
    s.records = kept
    assert not [*grown(s)]
    exits = {r.data.intent.id for r in submits if r.data.intent.purpose.value != "entry"}
    def plant(drop: tuple[str, ...] = (), add: Any = None, orders: bool = True) -> None:
        "Forget records of some kinds, and the exits at the venue; put one record before the first order."
        s.records = [x for r in kept if r.kind not in drop for x in ((add, r) if add and r is entry else (r,))]
        s.placed = placed if orders else [o for o in placed if o.id not in exits]
    s.truth["executions"] = [e | {"ts": e["ts"] + (200 * 10**9 if i else 0)} for i, e in enumerate(executions)]
    plant(("note:fill", "note:health", "note:alert"), orders=False)
    assert finds("5", "unprotected and unreported") and finds("5", "in the journal after")
    s.truth["executions"] = executions
    later = [Line(r.seq, r.ts + 600 * 10**9, r.kind, r.data) if r.kind == "note:fill" and r.data["purpose"] != "entry" else r for r in kept]
    s.records = [r for r in later if r.kind != "note:exit"]
    assert finds("5", "not given up")
    s.records = [r for r in s.records if r.kind != "command:Submit" or r.data.intent.purpose.value == "entry"]
    assert finds("5", "no stop order")
    s.records, s.placed = [r for r in later if not r.kind.startswith("command:")], [o for o in placed if o.id not in exits]
    assert finds("5", "nothing done about it")
    theirs = {o["id"] for o in s.truth["orders"] if o["client_order_id"] in exits}
    s.placed, turning = placed, next(e for e in executions if e["order"].partition("#")[0] in theirs)
    plant()
    s.truth["executions"] = [e | {"qty": "1000"} if e is turning else e for e in executions]
    assert finds("5", "turned")
    s.truth["executions"] = executions
    plant(add=Line(0, entry.ts - 1, "note:health", {"symbol": None, "bits": ["feed_down"]}))
    assert finds("6", "feed was down")
    stale = replace(entry.data, intent=replace(entry.data.intent, ts=entry.data.intent.ts + 3600 * 10**9))
    s.records = [Line(r.seq, r.ts, r.kind, stale) if r is entry else r for r in kept]
    assert finds("6", "on a row")
    plant(add=Line(entry.seq - 1, entry.ts, "note:trip", {"breaker": "kill"}))
    assert finds("7", "after a breaker")
    plant(("note:reconcile",))
    assert finds("8", "before the books were compared")
    plant()
    assert broken(s) == []
    told = s.run_dir / "told.txt"
    told.write_bytes(b"the key is " + HOUSE.secrets[0])
    assert finds("10", "told.txt")
    told.unlink()
    rows = recorded_rows(s.run_dir)
    rows["bid_qty"], rows["ask_qty"] = rows["ask_qty"].copy(), rows["bid_qty"].copy()
    shutil.rmtree(s.run_dir / "market")
    with new_recorder(s.run_dir, tape.universe, "alpaca-iex") as recorder: recorder.append(rows)
    assert finds("9", "record")   # another market, the same journal: other commands


def feed_at(server: PracticeServer, tape: Any) -> AlpacaFeed:
    cfg = AlpacaFeedConfig(stream_url=server.data_url, data_url=server.url, first_wait_s=0.02, most_wait_s=0.1, busy_wait_s=0.05, batch_gap_s=0.0)
    return AlpacaFeed(tape.universe, cfg, server.terms.key, server.terms.secret, server.api.desk.clock.now)


def told(feed: AlpacaFeed, words: str, server: PracticeServer, step_s: float = 0.0) -> int:
    "Venue seconds until the feed says so."
    began = server.api.desk.clock.now()
    def heard() -> bool:
        if step_s: server.step(step_s)
        feed.read(0.02)
        feed.bars()
        return any(words in f"{n.kind} {n.text}" for n in feed.news())
    until(heard, words, 20, 0.0)
    return (server.api.desk.clock.now() - began) // 10**9


def test_a_forgotten_connection_is_outlasted() -> None:
    """The 90 s zombie: a torn connection counts against the limit of one, the feed says so, waits, and comes back by itself."""
    tape = tape_of(1)
    with venue(tape, 0.0) as server:
        feed = feed_at(server, tape)
        feed.start(server.api.desk.clock.now())
        try:
            told(feed, "subscribed", server)
            for line in list(server.api.hub.lines): line.abort()
            told(feed, "connection limit exceeded", server)
            assert 80 <= told(feed, "up reconnected", server, 5.0) <= 180
            assert feed.stats.connects == 2
        finally: feed.close()


def test_keys_that_expire_while_the_feed_runs() -> None:
    """The line is down from then on, and people are told why; the keys are not in what they are told."""
    tape = tape_of(1)
    with venue(tape, 0.0, terms={"zombie_s": 0.0}) as server:
        feed = feed_at(server, tape)
        feed.start(server.api.desk.clock.now())
        try:
            told(feed, "subscribed", server)
            old = server.terms
            server.api.orders.terms = server.terms.model_copy(update={"key": "PKNEW"})
            for line in list(server.api.hub.lines): line.abort()
            told(feed, "the keys are wrong or expired", server)
            assert old.secret not in repr(feed) and feed.stats.connects == 1
        finally: feed.close()


@pytest.mark.soak
def test_a_thousand_seeds() -> None:
    script = Path(__file__).parent / "alpaca_faults.py"
    assert subprocess.run([sys.executable, str(script), "--seeds", "0:1100"], check=False).returncode == 0   # from 1000 on with every kind of fault
