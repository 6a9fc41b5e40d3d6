"""Sessions at a practice venue while its seeded fault script runs: one seed is one whole session over real sockets.

Time is stepped: the trader's reading of its feed moves the venue's clock a second at a time, and a thread moves it while the trader
waits for an answer, so a session of minutes takes a second and a loaded machine only makes it slower. What is particular to a broker
is its `House`; what must be true afterwards is the same for all."""

import argparse
import contextlib
import gc
import logging
import os
import shutil
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
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import orjson
from alpaca_live import folder
from fault_checks import after_the_end, kept, protected

from scalp_nb.feed.bars import MINUTE
from scalp_nb.order.types import Purpose
from scalp_nb.practice import serving
from scalp_nb.practice.faults import Fault
from scalp_nb.practice.venue import Tape, make_tape, step_clock
from scalp_nb.trader import venues
from scalp_nb.trader.journal import payload
from scalp_nb.trader.replay import replay_run
from scalp_nb.trader.session import EXIT_NOT_FLAT, run_session
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
READ_S = 0.25        # the broker's time-out, real seconds
WALL = {"ack_slow": 0.4, "accept_late": 0.4, "http_slow": 0.4, "fill_first": 0.05}   # faults in real seconds, against that time-out


@dataclass(frozen=True, slots=True)
class Placed:
    "An order as the venue has it."
    id: str          # the intent's
    symbol: str
    since: int       # ns UTC
    until: int       # when the venue was done with it; 2**62 = it is not
    rejected: bool
    open: bool       # it could still be executed


@dataclass(frozen=True)
class House:
    "What is particular to a broker and its practice venue."
    script: str                                                        # the command that repeats a seed
    feed: tuple[Any, str]                                              # module and class of its feed
    broker: tuple[Any, str]                                            # and of its broker
    busy: Callable[[Any], bool]                                        # whether the broker has a request under way
    connected: Callable[[Any], bool]
    arrivals: Callable[[Callable[[str, Decimal | None], None]], contextlib.AbstractContextManager[None]]   # told of orders and new quantities
    venue: Callable[..., contextlib.AbstractContextManager[Any]]       # (tape, speed, script=, state=, terms=, ...) -> server
    terms: dict[str, Any]                                              # of the account
    placed: Callable[[Any], list[Placed]]                              # the orders of a running venue
    secrets: tuple[bytes, ...]                                         # that must not be written anywhere
    tape: Callable[[int], Tape]                                        # of a seed
    config: Callable[..., RunConfig]                                   # (seed, tape, **over)
    faults: Callable[[int], tuple[Fault, ...]]                         # of a seed
    shut_out: Callable[["Story"], bool] = lambda s: False              # the broker takes no order from us any more, and people were told


def drawn(seed: int) -> np.random.Generator: return np.random.default_rng([seed, 4])


def leaning(tape: Tape, seed: int) -> Any:
    "Buyers' share of what is shown, row by row: for a while to one side, then to the other."
    r, k = drawn(seed), len(tape.universe)
    n = len(tape.rows) // k
    return np.repeat(r.choice([0.15, 0.5, 0.85], (n // 12 + 1, k), p=[0.25, 0.5, 0.25]), 12, 0)[:n].ravel()


def after_a_minute(tape: Tape, rows: Any) -> Tape:
    "A tape whose first minute is history."
    cut = int(rows["ts"][0]) // MINUTE * MINUTE + MINUTE
    return make_tape(rows[rows["ts"] >= cut], tape.universe, tape.bars[tape.bars["ts"] >= cut], tape.bars[tape.bars["ts"] < cut])


def walled(script: tuple[Fault, ...], changes: dict[str, float] | None = None) -> tuple[Fault, ...]:
    "Faults in real seconds scaled to the time-outs of these sessions."
    wall = WALL | (changes or {})
    return tuple(f.model_copy(update={"args": {**f.args, "seconds": wall[f.fault]}}) if f.fault in wall else f for f in script)


@dataclass
class Stepper:
    "Moves the venue's time."
    house: House
    server: Any
    last: float = field(default_factory=time.monotonic)
    over: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    broker: Any = None
    speed: float = 0.0

    def now(self) -> int: return int(self.server.site.desk.clock.now())
    def wall_s(self, ns: int) -> float: return 0.0

    def step(self, after: float) -> None:
        "One step, unless the last one was just now."
        with self.lock:
            if time.monotonic() - self.last < after: return
            step_clock(self.server.site.desk.clock, int(STEP_S * SECOND))
            self.last = time.monotonic()

    def turn(self) -> None:
        "The trader looks at its feed: time passes, slowly while it waits for the broker."
        self.step(BUSY_S if self.broker is not None and self.house.busy(self.broker) else CALM_S)

    def watch(self) -> None:
        "The trader itself waits: time passes all the same."
        while not self.over.wait(BUSY_S):
            if self.broker is not None and self.house.connected(self.broker): self.step(2 * BUSY_S)  # what is compiled before costs no market time


@dataclass
class Seen:
    "What arrived at the venue, as it arrived."
    posts: Counter[str] = field(default_factory=Counter)   # by client order id
    early: list[str] = field(default_factory=list)         # orders that were not durable when they arrived
    changes: Counter[tuple[str, Decimal]] = field(default_factory=Counter)   # by client order id and new quantity


@contextlib.contextmanager
def stepped(house: House, server: Any, run_dir: Path) -> Iterator[Seen]:
    "Sessions begun inside run on the venue's stepped clock; orders are looked up in the store on disk as they arrive."
    clock, seen = Stepper(house, server), Seen()
    feed_class, broker_class = getattr(*house.feed), getattr(*house.broker)

    class Feed(feed_class):  # type: ignore[misc, valid-type]
        def read(self, timeout_s: float) -> Any:
            clock.turn()
            return super().read(CALM_S)

    class Broker(broker_class):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **how: Any) -> None:
            super().__init__(*args, **how)
            clock.broker = self

    def arrived(client_id: str, qty: Decimal | None) -> None:
        if qty is None: seen.posts[client_id] += 1
        else: seen.changes[client_id, qty] += 1
        with contextlib.closing(sqlite3.connect(f"file:{run_dir / 'store.db'}?mode=ro", uri=True, timeout=5)) as db:
            if qty is not None:
                found = db.execute("select data from journal where kind = 'command:Modify' and corr = ?", (client_id,)).fetchall()
                asked = [Decimal(orjson.loads(d)["terms"]["qty"]) for d, in found]
                if asked.count(qty) < seen.changes[client_id, qty]: seen.early.append(f"{client_id}, changed to {qty},")
                return
            if not db.execute("select 1 from order_intents where client_order_id = ?", (client_id,)).fetchone(): seen.early.append(client_id)

    watcher = threading.Thread(target=clock.watch, daemon=True)
    with mock.patch.object(*house.feed, Feed), mock.patch.object(*house.broker, Broker), house.arrivals(arrived), \
            mock.patch.object(venues, "practice_clock", lambda look, speed: clock), mock.patch.object(venues, "speed_of", lambda v, e: 0.0), \
            mock.patch.object(serving, "PUMP_S", 0.001):
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
    house: "House"
    truth: dict[str, Any]
    placed: list[Placed]
    seen: Seen
    tape: Tape
    status: int = 0
    records: list[Any] = field(default_factory=list)
    state: dict[str, Any] | None = None
    faults: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)

    def of(self, *kinds: str) -> list[Any]: return [r for r in self.records if r.kind in kinds]


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
    orders = s.placed
    if len({o.id for o in orders}) < len(orders): yield "2: two orders of one intent at the venue"
    tops = [o for o in orders if o.id in intents]
    for o in (o for o in orders if o.id not in intents and o.id in s.seen.posts): yield f"1: order {o.id} is in no journal"
    for symbol in s.tape.universe.symbols:
        spans = sorted((o.since, o.until, o.id) for o in tops if o.symbol == symbol and intents[o.id].purpose is Purpose.ENTRY)
        for (_, until, a), (began, _, b) in zip(spans, spans[1:], strict=False):
            if began < until: yield f"2: entries {a} and {b} of {symbol} live at once"


def counted(s: Story) -> Iterator[str]:
    "3: every execution once."
    said, late = [r.data for r in s.of("note:fill")], after_the_end(s)
    if len({f["exec_id"] for f in said}) < len(said): yield "3: an execution was counted twice"
    ours = Counter((f["symbol"], Decimal(f["qty"]), Decimal(f["px"])) for f in said)
    theirs = Counter((e["symbol"], Decimal(e["qty"]), Decimal(e["px"])) for e in s.truth["executions"] if e not in late)
    for k in (theirs - ours): yield f"3: the venue's execution {k} is not in the journal"
    for k in (ours - theirs): yield f"3: the journal's fill {k} is not at the venue"


def conserved(s: Story) -> Iterator[str]:
    "4: cash and positions are the sum of the executions, and the ledger is the broker's."
    def money(e: dict[str, Any]) -> Decimal: return -int(e["side"]) * Decimal(e["qty"]) * Decimal(e["px"]) - Decimal(e.get("fee", 0))
    moved = sum(map(money, s.truth["executions"]), Decimal(0))
    if Decimal(s.truth["start_cash"]) + moved != Decimal(s.truth["cash"]): yield f"4: the venue's cash {s.truth['cash']}, {moved} by its executions"
    out = s.house.shut_out(s)
    if s.truth["positions"] and not out: yield f"4: not flat at the venue: {s.truth['positions']}"
    open_orders = [o.id for o in s.placed if o.open]
    if open_orders and not out: yield f"4: left open at the venue: {open_orders}"
    end = s.of("run:end")[0].data if s.of("run:end") else {}
    away = "could not be compared at the end" in end.get("reason", "") and end["flat"]   # the venue was away at the end, and the run says so
    if not end: yield "4: the run did not end in order"
    elif not away and (not (end["ok"] or out and s.status == EXIT_NOT_FLAT) or end["differences"]): yield f"4: ended badly: {end}"
    state = s.state
    if state is not None:
        charged = any("kept" in e or "fee" in e for e in s.truth["executions"])   # crypto: the venue takes its fees itself
        fees = Decimal(0) if charged else sum((Decimal(r.data["fee"]) for r in s.of("note:fill")), Decimal(0))
        cash = Decimal(state["book"]["cash"])
        theirs = Decimal(s.truth["cash"]) - sum(map(money, after_the_end(s)), Decimal(0))
        if cash + fees != theirs: yield f"4: cash {cash} and fees {fees} against the venue's {theirs}"


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
        if not path.is_file(): continue
        said = path.read_bytes()
        if any(word in said for word in s.house.secrets): yield f"10: a secret in {path.name}"


CHECKS: tuple[Callable[[Story], Iterator[str]], ...] = (durable, once, counted, conserved, protected, kept, fresh, latched, replayed, unspoken)


@dataclass
class Outcome:
    "One seed."
    seed: int
    broken: list[str]
    fills: int = 0
    orders: int = 0
    changes: int = 0        # of orders, that arrived
    faults: Counter[str] = field(default_factory=Counter)
    cpu: float = 0.0
    wall: float = 0.0
    refused: bool = False   # a fault at the start: nothing was traded


def play(house: House, home: Path, cfg: RunConfig, tape: Tape, script: tuple[Fault, ...] = (), terms: dict[str, Any] | None = None,
         beside: Callable[[Any], None] | None = None, **how: Any) -> Story:
    "One session on stepped time; `beside` is called once the venue serves."
    run_dir = folder(home, cfg)
    with house.venue(tape, 0.0, script=script, state=home / "venue", terms={**house.terms, **(terms or {})}, **how) as server:
        if beside is not None: beside(server)
        with stepped(house, server, run_dir) as seen: status = run_session(cfg, run_dir)
        truth, placed, faults, events = server.get("truth"), house.placed(server), server.get("faults"), server.get("events")
    return read_story(Story(run_dir, house, truth, placed, seen, tape, status, faults=faults, events=events))


def broken(s: Story) -> list[str]:
    "What a run broke; one that was refused at the start must have traded nothing."
    if s.of("event:Started"): return [x for check in CHECKS for x in check(s)]
    return [f"orders at a venue the session never started at: {s.placed}"] if s.placed else []


def run_seed(house: House, seed: int, keep: Path | None = None) -> Outcome:
    "One session under its faults, and what it broke."
    wall, cpu = time.monotonic(), time.process_time()
    shm = Path("/dev/shm")
    home = Path(tempfile.mkdtemp(dir=shm if shm.is_dir() else None)) if keep is None else keep
    try:
        tape = house.tape(seed)
        terms = {"seed": seed, "partial_prob": (0.0, 0.1, 0.4)[seed // 3 % 3]}
        s = play(house, home, house.config(seed, tape), tape, house.faults(seed), terms, seed=seed)
        out = Outcome(seed, broken(s), len(s.truth["executions"]), len(s.placed), sum(s.seen.changes.values()), Counter(f["fault"] for f in s.faults))
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


def main(house: House, argv: list[str] | None = None) -> int:
    "Run seeds and tell which broke something."
    p = argparse.ArgumentParser(description="Fault runs at a practice venue.")
    p.add_argument("--seeds", default="0:10", help="FIRST:LAST, the last not included")
    p.add_argument("--seed", type=int, help="one seed")
    p.add_argument("--jobs", type=int, default=1, help="processes")
    p.add_argument("--keep", type=Path, help="folder to keep the runs in")
    p.add_argument("-v", "--verbose", action="store_true")
    a = p.parse_args(argv)
    first, last = (a.seed, a.seed + 1) if a.seed is not None else map(int, a.seeds.split(":"))
    logging.disable(logging.CRITICAL)
    if last - first > CHUNK or a.jobs > 1: return in_parts(house, first, last, a)
    with contextlib.redirect_stderr(open(os.devnull, "w")): run_seed(house, first)   # everything is compiled before time matters
    bad, sums, faults, t0 = 0, Counter[str](), Counter[str](), time.monotonic()
    for seed in range(first, last):
        with contextlib.redirect_stderr(sys.stderr if a.verbose else open(os.devnull, "w")):
            try: out = run_seed(house, seed, a.keep and a.keep / str(seed))
            except Exception: out = Outcome(seed, [traceback.format_exc()])
        gc.collect()
        bad += bool(out.broken)
        faults += out.faults
        sums.update(runs=1, refused=out.refused, fills=out.fills, orders=out.orders, changes=out.changes)
        if a.verbose or out.broken:
            print(f"seed {seed}: {out.orders} orders, {out.fills} fills, {out.cpu:.1f} s CPU, {out.wall:.1f} s; {dict(out.faults)}", flush=True)
            for line in out.broken: print(f"  {line}")
            if out.broken: print(f"  again: python {house.script} --seed {seed} -v", flush=True)
    print(f"{first}:{last}: {bad} seeds broke something; {dict(sums)}; {sum(faults.values())} faults of {len(faults)} kinds struck; "
          f"{time.monotonic() - t0:.0f} s, {time.process_time():.0f} s CPU", flush=True)
    return 1 if bad else 0


CHUNK = 50   # seeds of one process

def in_parts(house: House, first: int, last: int, a: argparse.Namespace) -> int:
    "The range in processes of their own, so many at once; a sum at the end."
    more = (["--keep", str(a.keep)] if a.keep else []) + (["-v"] if a.verbose else [])
    def part(k: int) -> int:
        script, *which = house.script.split()
        argv = [sys.executable, str(Path(__file__).parents[1] / script), *which, "--seeds", f"{k}:{min(k + CHUNK, last)}", *more]
        return subprocess.run(argv, check=False).returncode
    with ThreadPoolExecutor(max(1, a.jobs)) as pool: codes = list(pool.map(part, range(first, last, CHUNK)))
    print(f"{first}:{last}: {sum(c != 0 for c in codes)} of {len(codes)} parts had a seed that broke something")
    return max(codes)
