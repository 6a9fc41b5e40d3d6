"""Sessions at the Alpaca practice venue while its seeded fault script runs: one seed is one whole session over real sockets.

    python tests/alpaca_faults.py --seeds 0:1000     # a range, one after another
    python tests/alpaca_faults.py --seed 17 -v       # one again, with its faults and what was found

Time is stepped: the trader's reading of its feed moves the venue's clock a second at a time, and a thread moves it while the trader
waits for an answer, so a session of minutes takes a second and a loaded machine only makes it slower."""

import argparse
import contextlib
import gc
import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from alpaca_live import folder, venue

from scalp_nb.broker import alpaca as broker_alpaca
from scalp_nb.feed import alpaca as feed_alpaca
from scalp_nb.feed.bars import MINUTE
from scalp_nb.order.types import Purpose
from scalp_nb.practice import alpaca_wire, serving
from scalp_nb.practice.alpaca import PracticeServer
from scalp_nb.practice.faults import ALPACA_KINDS, ALPACA_MORE, Fault, random_script
from scalp_nb.practice.venue import Tape, make_tape, step_clock, walk_tape
from scalp_nb.trader import venues
from scalp_nb.trader.config import load_config
from scalp_nb.trader.journal import payload
from scalp_nb.trader.replay import replay_run
from scalp_nb.trader.session import run_session
from scalp_nb.trader.setup import RunConfig
from scalp_nb.trader.store import Store
from scalp_nb.trader.streaming import recorded_rows

SECOND = 1_000_000_000
LASTS = 240          # venue seconds until the session asks for a flat end
MORE = 660           # the market goes on, so that there is something to close into
STEP_S = 1.0         # venue seconds in a step
CALM_S = 0.003       # a step takes at least so long: everybody may read what the last one brought
BUSY_S = 0.015       # and so long while a request is under way
STALE_MS = 8_000     # of the configured health limits
BOUND_S = 60.0       # an open position has a stop at the venue, or an armed one here, or people are told, within so many venue seconds
WALL = {"ack_slow": 0.4, "accept_late": 0.4, "http_slow": 0.4, "fill_first": 0.05}   # real seconds, against a time-out of READ_S
READ_S = 0.25


def drawn(seed: int) -> np.random.Generator: return np.random.default_rng([seed, 4])


def tape_of(seed: int) -> Tape:
    "A walk of three symbols whose displayed sizes lean to one side for a while."
    r, k, n = drawn(seed), 3, LASTS + MORE
    tape = walk_tape(tuple("XYZ"[:k]), n + 60, seed + 1)
    rows = tape.rows.copy()
    lean = np.repeat(r.choice([0.15, 0.5, 0.85], ((n + 60) // 12 + 1, k), p=[0.25, 0.5, 0.25]), 12, 0)[:n + 60].ravel()
    rows["bid_qty"][:, 0], rows["ask_qty"][:, 0] = np.round(1000 * lean), np.round(1000 * (1 - lean))
    cut = int(rows["ts"][0]) // MINUTE * MINUTE + MINUTE
    return make_tape(rows[rows["ts"] >= cut], tape.universe, tape.bars[tape.bars["ts"] >= cut], tape.bars[tape.bars["ts"] < cut])


def script_of(seed: int) -> tuple[Fault, ...]:
    "The seed's faults, those in real seconds scaled to the time-outs of these sessions."
    kinds = ALPACA_KINDS if seed < 1000 else ALPACA_KINDS + ALPACA_MORE   # the first thousand scripts stay what they were
    out = random_script(seed, LASTS, 3 + int(drawn(seed).integers(0, 7)), kinds)
    return tuple(f.model_copy(update={"args": {**f.args, "seconds": WALL[f.fault]}}) if f.fault in WALL else f for f in out)


def config_of(seed: int, tape: Tape, **over: Any) -> RunConfig:
    "The pressure scalper on one level, quick to enter and to leave; what rests at the venue differs by seed."
    end = datetime.fromtimestamp(int(tape.rows["ts"][0]) / 1e9 + LASTS, UTC)
    return load_config(RunConfig, None, {
        "venue.broker": "alpaca_practice", "run.account": "test", "run.seed": seed, "data.symbols": list(tape.universe.symbols), "data.end": end,
        "strategy": {"name": "pressure", "fallback": "displayed", "levels": 1, "confirm_levels": 1, "warmup_rows": 5, "cooldown_s": 2.0,
                     "rest_s": 4.0, "lower": 0.7, "decision_window_ms": 250},
        "sizing": {"mode": "percent", "balance_pct": 0.05}, "exits.mode": ("venue_stop", "oco", "local")[seed % 3], "exits.stop_pct": 0.0006,
        "exits.target_pct": 0.001, "exits.entry_timeout_ms": 15_000, "exits.reprice_ms": 5_000, "exits.time_stop_s": 45.0,
        "risk.max_orders_per_second": 50, "risk.max_trades_per_day": 200, "risk.max_consecutive_losses": 100, "risk.avoid_first_minutes": 0,
        "health.max_lag_ms": 20_000, "health.stale_ms": STALE_MS, "health.connection_stale_ms": STALE_MS, "session.drain_timeout_s": 300.0,
        "session.reconcile_s": 30.0,
        "venue.alpaca.account": {"connect_timeout_s": READ_S, "read_timeout_s": READ_S, "settle_s": 0.6, "reconcile_s": 0.09, "position_lag_s": 10.0,
                                 "per_minute": 10_000, "reserve": 5_000, "rest_s": 0.05,
                                 "ping_s": 0.5, "stream_timeout_s": 1.0, "first_wait_s": 0.02, "most_wait_s": 0.1},
        "venue.alpaca.feed": {"batch_gap_s": 0.0, "connect_timeout_s": 1.0, "silence_s": 0.15, "ping_s": 0.5, "first_wait_s": 0.02,
                              "most_wait_s": 0.1, "busy_wait_s": 0.05, "poll_delay_s": 0.0}, **over})


@dataclass
class Stepper:
    "Moves the venue's time."
    server: PracticeServer
    last: float = field(default_factory=time.monotonic)
    over: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    broker: Any = None

    def now(self) -> int: return self.server.api.desk.clock.now()

    def step(self, after: float) -> None:
        "One step, unless the last one was just now."
        with self.lock:
            if time.monotonic() - self.last < after: return
            step_clock(self.server.api.desk.clock, int(STEP_S * SECOND))
            self.last = time.monotonic()

    def turn(self) -> None:
        "The trader looks at its feed: time passes, slowly while it waits for the broker."
        self.step(BUSY_S if self.broker is not None and self.broker.busy else CALM_S)

    def watch(self) -> None:
        "The trader itself waits: time passes all the same."
        while not self.over.wait(BUSY_S):
            if self.broker is not None and self.broker._since: self.step(2 * BUSY_S)   # connected: what is compiled before costs no market time


@dataclass
class Seen:
    "What arrived at the venue, as it arrived."
    posts: Counter[str] = field(default_factory=Counter)   # by client order id
    early: list[str] = field(default_factory=list)         # orders that were not durable when they arrived


@contextlib.contextmanager
def stepped(server: PracticeServer, run_dir: Path) -> Iterator[Seen]:
    "Sessions begun inside run on the venue's stepped clock; orders are looked up in the store on disk as they arrive."
    clock, seen = Stepper(server), Seen()
    dispatch = alpaca_wire.dispatch

    class Feed(feed_alpaca.AlpacaFeed):
        def read(self, timeout_s: float) -> Any:
            clock.turn()
            return super().read(CALM_S)

    class Broker(broker_alpaca.AlpacaBroker):
        def __init__(self, *args: Any, **how: Any) -> None:
            super().__init__(*args, **how)
            clock.broker = self

    def arrived(api: Any, ask: Any) -> Any:
        if ask.method == "POST" and ask.path == "/v2/orders":
            client_id = str(ask.body.get("client_order_id"))
            seen.posts[client_id] += 1
            with contextlib.closing(sqlite3.connect(f"file:{run_dir / 'store.db'}?mode=ro", uri=True, timeout=5)) as db:
                if not db.execute("select 1 from order_intents where client_order_id = ?", (client_id,)).fetchone(): seen.early.append(client_id)
        return dispatch(api, ask)

    watcher = threading.Thread(target=clock.watch, daemon=True)
    with mock.patch.object(feed_alpaca, "AlpacaFeed", Feed), mock.patch.object(broker_alpaca, "AlpacaBroker", Broker), \
            mock.patch.object(alpaca_wire, "dispatch", arrived), mock.patch.object(venues, "practice_clock", lambda b, s: clock), \
            mock.patch.object(venues, "speed_of", lambda v, e: 0.0), mock.patch.object(serving, "PUMP_S", 0.001):
        watcher.start()
        try: yield seen
        finally:
            clock.over.set()
            watcher.join()


# ---- what must be true afterwards

@dataclass
class Story:
    "Journal, venue and recording of one run."
    run_dir: Path
    truth: dict[str, Any]
    seen: Seen
    tape: Tape
    status: int = 0
    records: list[Any] = field(default_factory=list)
    state: dict[str, Any] | None = None
    faults: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)

    def of(self, *kinds: str) -> list[Any]: return [r for r in self.records if r.kind in kinds]


def ns(text: str | None) -> int:
    "A time as Alpaca writes it."
    if not text: return 0
    whole, _, frac = text.rstrip("Z").partition(".")
    return int(datetime.fromisoformat(whole).replace(tzinfo=UTC).timestamp()) * SECOND + int(frac.ljust(9, "0")[:9] or 0)


def ended(o: dict[str, Any]) -> int:
    "When the venue was done with an order."
    return min((ns(o[k]) for k in ("filled_at", "canceled_at", "expired_at", "failed_at") if o.get(k)), default=2**62)


def durable(s: Story) -> Iterator[str]:
    "1: an intent is durable before it is sent; nothing is sent before the start was reconciled."
    for i in s.seen.early: yield f"1: order {i} arrived before its intent was on disk"
    start = next((r.seq for r in s.of("note:reconcile") if r.data["starting"] and not r.data["differences"]), None)
    for r in s.of("command:Submit"):
        if start is None or r.seq < start: yield f"8: order {r.data.intent.id} before the books were compared"


def once(s: Story) -> Iterator[str]:
    "2: one order of an intent, one entry of a symbol."
    for i, n in s.seen.posts.items():
        if n > 1: yield f"2: order {i} was sent {n} times"
    intents = {r.data.intent.id: r.data.intent for r in s.of("command:Submit")}
    orders = s.truth["orders"]
    if len({o["client_order_id"] for o in orders}) < len(orders): yield "2: two orders of one intent at the venue"
    tops = [o for o in orders if o["client_order_id"] in intents]
    for o in (o for o in orders if o["client_order_id"] not in intents and o["client_order_id"] in s.seen.posts):
        yield f"1: order {o['client_order_id']} is in no journal"
    for symbol in s.tape.universe.symbols:
        spans = sorted((ns(o["submitted_at"]), ended(o), o["client_order_id"]) for o in tops
                       if o["symbol"] == symbol and intents[o["client_order_id"]].purpose is Purpose.ENTRY)
        for (_, until, a), (began, _, b) in zip(spans, spans[1:], strict=False):
            if began < until: yield f"2: entries {a} and {b} of {symbol} live at once"


def counted(s: Story) -> Iterator[str]:
    "3: every execution once."
    said = [r.data for r in s.of("note:fill")]
    if len({f["exec_id"] for f in said}) < len(said): yield "3: an execution was counted twice"
    ours = Counter((f["symbol"], Decimal(f["qty"]), Decimal(f["px"])) for f in said)
    theirs = Counter((e["symbol"], Decimal(e["qty"]), Decimal(e["px"])) for e in s.truth["executions"])
    for k in (theirs - ours): yield f"3: the venue's execution {k} is not in the journal"
    for k in (ours - theirs): yield f"3: the journal's fill {k} is not at the venue"


def conserved(s: Story) -> Iterator[str]:
    "4: cash and positions are the sum of the executions, and the ledger is the broker's."
    moved = sum((-int(e["side"]) * Decimal(e["qty"]) * Decimal(e["px"]) for e in s.truth["executions"]), Decimal(0))
    if Decimal(s.truth["start_cash"]) + moved != Decimal(s.truth["cash"]): yield f"4: the venue's cash {s.truth['cash']}, {moved} by its executions"
    if s.truth["positions"]: yield f"4: not flat at the venue: {s.truth['positions']}"
    open_orders = [o["client_order_id"] for o in s.truth["orders"] if ended(o) == 2**62 and o["status"] not in ("rejected", "replaced")]
    if open_orders: yield f"4: left open at the venue: {open_orders}"
    end = s.of("run:end")[0].data if s.of("run:end") else {}
    away = "could not be compared at the end" in end.get("reason", "") and end["flat"]   # the venue was away at the end, and the run says so
    if not end: yield "4: the run did not end in order"
    elif not away and (not end["ok"] or end["differences"]): yield f"4: ended badly: {end}"
    state = s.state
    if state is not None:
        fees = sum((Decimal(r.data["fee"]) for r in s.of("note:fill")), Decimal(0))
        cash = Decimal(state["book"]["cash"])
        if cash + fees != Decimal(s.truth["cash"]): yield f"4: cash {cash} and fees {fees} against the venue's {s.truth['cash']}"


def positions(executions: list[dict[str, Any]], symbol: str) -> list[tuple[int, int]]:
    "When the venue had a position of a symbol."
    qty, since, out = Decimal(0), 0, []
    for e in executions:
        if e["symbol"] != symbol: continue
        before, qty = qty, qty + int(e["side"]) * Decimal(e["qty"])
        if not before: since = int(e["ts"])
        if not qty: out.append((since, int(e["ts"])))
    return out + ([(since, 2**62)] if qty else [])


def uncovered(span: tuple[int, int], cover: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    "Parts of a span that none of the others covers."
    at = span[0]
    for a, b in sorted(cover):
        if a > at: yield at, min(a, span[1])
        at = max(at, b)
        if at >= span[1]: return
    if at < span[1]: yield at, span[1]


def protected(s: Story) -> Iterator[str]:
    "5: an open position has an exit at the venue, or the trader knows of it and sees its prices, or said that something is wrong."
    intents = {r.data.intent.id: r.data.intent for r in s.of("command:Submit")}
    exits = {i.id for i in intents.values() if i.purpose is not Purpose.ENTRY}
    told = [r.ts for r in s.of("note:health", "note:alert", "note:trip")]
    learned = {symbol: sorted(r.ts for r in s.of("note:fill") if r.data["symbol"] == symbol) for symbol in s.tape.universe.symbols}
    bound = int(BOUND_S * SECOND)
    for symbol in s.tape.universe.symbols:
        cover = [(ns(o["submitted_at"]), ended(o)) for o in s.truth["orders"] if o["symbol"] == symbol and o["status"] != "rejected"
                 and (o["client_order_id"] in exits or o["client_order_id"] not in intents)]
        for span in positions(s.truth["executions"], symbol):
            for a, b in uncovered(span, cover):
                if b - a <= bound: continue
                armed = any(span[0] <= t <= a + bound for t in learned[symbol])
                warned = any(span[0] <= t <= a + bound for t in told)
                if not armed and not warned: yield f"5: {symbol} unprotected and unreported for {(b - a) / 1e9:.0f} s from {a}"


def fresh(s: Story) -> Iterator[str]:
    "6: no entry on a stale feed, nor while a connection is down."
    rows = recorded_rows(s.run_dir)
    down: set[str] = set()
    for r in s.of("note:health", "command:Submit"):
        if r.kind == "note:health":
            for bit in r.data["bits"]:
                name, _, way = bit.rpartition("_")
                if r.data["symbol"] is None and way in ("up", "down"): (down.discard if way == "up" else down.add)(name)
            continue
        i = r.data.intent
        if i.purpose is not Purpose.ENTRY: continue
        if down: yield f"6: entry {i.id} while {', '.join(sorted(down))} was down"
        mine = rows["recv"][rows["sym"] == i.sym]
        age = i.ts - int(mine[mine <= i.ts].max(initial=0))
        if age > STALE_MS * 1_000_000: yield f"6: entry {i.id} on a row {age / 1e9:.1f} s old"


def latched(s: Story) -> Iterator[str]:
    "7: after a breaker tripped nothing is entered."
    trip = min((r.seq for r in s.of("note:trip")), default=2**62)
    for r in s.of("command:Submit"):
        if r.seq > trip and r.data.intent.purpose is Purpose.ENTRY: yield f"7: entry {r.data.intent.id} after a breaker"


def replayed(s: Story) -> Iterator[str]:
    "9: the same events, the same commands."
    again = replay_run(s.run_dir)
    if not again.ok: yield f"9: record {again.seq}: {again.first[:400]}"


def unspoken(s: Story) -> Iterator[str]:
    "10: no secret in anything that was written."
    for path in s.run_dir.rglob("*"):
        if path.is_file() and b"practice-secret" in path.read_bytes(): yield f"10: a secret in {path.name}"


CHECKS: tuple[Callable[[Story], Iterator[str]], ...] = (durable, once, counted, conserved, protected, fresh, latched, replayed, unspoken)


@dataclass
class Outcome:
    "One seed."
    seed: int
    broken: list[str]
    fills: int = 0
    orders: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    cpu: float = 0.0
    wall: float = 0.0
    refused: bool = False   # a fault at the start: nothing was traded


def play(home: Path, cfg: RunConfig, tape: Tape, script: tuple[Fault, ...] = (), terms: dict[str, Any] | None = None,
         beside: Callable[[PracticeServer], None] | None = None, **how: Any) -> Story:
    "One session on stepped time; `beside` is called once the venue serves."
    run_dir = folder(home, cfg)
    with venue(tape, 0.0, script=script, state=home / "venue", terms={"rate_limit": 10_000, "zombie_s": 20.0, **(terms or {})}, **how) as server:
        if beside is not None: beside(server)
        with stepped(server, run_dir) as seen: status = run_session(cfg, run_dir)
        truth, faults, events = server.get("truth"), server.get("faults"), server.get("events")
    return read_story(Story(run_dir, truth, seen, tape, status, faults=faults, events=events))


def broken(s: Story) -> list[str]:
    "What a run broke; one that was refused at the start must have traded nothing."
    if s.of("event:Started"): return [x for check in CHECKS for x in check(s)]
    return [f"orders at a venue the session never started at: {s.truth['orders']}"] if s.truth["orders"] else []


def run_seed(seed: int, keep: Path | None = None) -> Outcome:
    "One session under its faults, and what it broke."
    wall, cpu = time.monotonic(), time.process_time()
    shm = Path("/dev/shm")
    home = Path(tempfile.mkdtemp(dir=shm if shm.is_dir() else None)) if keep is None else keep
    try:
        tape = tape_of(seed)
        s = play(home, config_of(seed, tape), tape, script_of(seed), {"seed": seed, "partial_prob": (0.0, 0.1, 0.4)[seed // 3 % 3]}, seed=seed)
        out = Outcome(seed, broken(s), len(s.truth["executions"]), len(s.truth["orders"]), Counter(f["fault"] for f in s.faults))
        out.refused, out.cpu, out.wall = not s.of("event:Started"), time.process_time() - cpu, time.monotonic() - wall
        return out
    finally:
        if keep is None: shutil.rmtree(home, ignore_errors=True)


def read_story(s: Story) -> Story:
    "Add the journal."
    if (s.run_dir / "store.db").exists():
        store = Store.open(s.run_dir / "store.db", "test", exclusive=False)
        s.records = [Line(r.seq, r.ts, r.kind, getattr(x := payload(r), "data", x)) for r in store.records()]
        s.state = store.get_state("trader")
        store.close()
    return s


@dataclass(slots=True)
class Line:
    "A record of the journal."
    seq: int
    ts: int
    kind: str
    data: Any


def main(argv: list[str] | None = None) -> int:
    "Run seeds and tell which broke something."
    p = argparse.ArgumentParser(description="Fault runs at the Alpaca practice venue.")
    p.add_argument("--seeds", default="0:10", help="FIRST:LAST, the last not included")
    p.add_argument("--seed", type=int, help="one seed")
    p.add_argument("--jobs", type=int, default=1, help="processes")
    p.add_argument("--keep", type=Path, help="folder to keep the runs in")
    p.add_argument("-v", "--verbose", action="store_true")
    a = p.parse_args(argv)
    first, last = (a.seed, a.seed + 1) if a.seed is not None else map(int, a.seeds.split(":"))
    logging.disable(logging.CRITICAL)
    if last - first > CHUNK or a.jobs > 1: return in_parts(first, last, a)
    with contextlib.redirect_stderr(open(os.devnull, "w")): run_seed(first)   # everything is compiled before time matters
    bad, sums, faults, t0 = 0, Counter[str](), Counter[str](), time.monotonic()
    for seed in range(first, last):
        with contextlib.redirect_stderr(sys.stderr if a.verbose else open(os.devnull, "w")):
            try: out = run_seed(seed, a.keep and a.keep / str(seed))
            except Exception: out = Outcome(seed, [traceback.format_exc()])
        gc.collect()
        bad += bool(out.broken)
        faults += out.faults
        sums.update(runs=1, refused=out.refused, fills=out.fills, orders=out.orders)
        if a.verbose or out.broken:
            print(f"seed {seed}: {out.orders} orders, {out.fills} fills, {out.cpu:.1f} s CPU, {out.wall:.1f} s; {dict(out.faults)}", flush=True)
            for line in out.broken: print(f"  {line}")
            if out.broken: print(f"  again: python tests/alpaca_faults.py --seed {seed} -v", flush=True)
    print(f"{first}:{last}: {bad} seeds broke something; {dict(sums)}; {sum(faults.values())} faults of {len(faults)} kinds struck; "
          f"{time.monotonic() - t0:.0f} s, {time.process_time():.0f} s CPU", flush=True)
    return 1 if bad else 0


CHUNK = 50   # seeds of one process

def in_parts(first: int, last: int, a: argparse.Namespace) -> int:
    "The range in processes of their own, so many at once; a sum at the end."
    more = (["--keep", str(a.keep)] if a.keep else []) + (["-v"] if a.verbose else [])
    def part(k: int) -> int:
        return subprocess.run([sys.executable, __file__, "--seeds", f"{k}:{min(k + CHUNK, last)}", *more], check=False).returncode
    with ThreadPoolExecutor(max(1, a.jobs)) as pool: codes = list(pool.map(part, range(first, last, CHUNK)))
    print(f"{first}:{last}: {sum(c != 0 for c in codes)} of {len(codes)} parts had a seed that broke something")
    return max(codes)


if __name__ == "__main__":
    for s in (signal.SIGTERM, signal.SIGINT): signal.signal(s, signal.SIG_DFL)
    sys.exit(main())
