"""The paper venue: the conformance suite, conservation under random faults, the scan's band, and crashes."""
from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

pytest.register_assert_rewrite("broker_conformance")
from broker_conformance import BrokerConformance, Seen  # noqa: E402

from scalp_nb.broker.base import NEVER, Broker, BrokerError  # noqa: E402
from scalp_nb.broker.exchange import pauses, to_units  # noqa: E402
from scalp_nb.broker.paper import PaperBroker, PaperConfig, alpaca_like, angel_like  # noqa: E402
from scalp_nb.feed.depth import FLAG_HALT, Rows, depth_row, empty_depth  # noqa: E402
from scalp_nb.feed.instrument import Instrument, Universe  # noqa: E402
from scalp_nb.order.types import Fill, Intent, OrderType, Purpose, Side, Tif, Update, UpdateKind  # noqa: E402

D, MS = Decimal, 1_000_000
UNI = Universe("pair", (Instrument("AAA", "NSE"), Instrument("BBB", "NSE")))
FAULTS: dict[str, dict[str, Any]] = {
    "reject": {"reject_prob": 1.0}, "lost_ack": {"lost_ack_prob": 1.0, "answer_timeout_ns": 40 * MS}, "duplicate": {"duplicate_update_prob": 1.0},
    "late": {"late_fill_prob": 0.5}, "disconnect": {}, "restart": {}, "halt": {}}


def fee(f: Fill) -> Decimal: return D("0.0003") * f.qty * f.px + D("0.02")


class PaperDriver:
    "Steers one PaperBroker on a virtual clock."
    universe = UNI
    faults = frozenset(FAULTS)

    def __init__(self, base: PaperConfig, folder: Path) -> None:
        self.base, self.folder, self.cash, self.now, self.n = base, folder, base.cash, 1_000 * MS, 0

    def fees(self, fills: Sequence[Update], sent: dict[str, Intent]) -> Decimal:
        return sum((fee(Fill(u.ts, u.client_id, u.exec_id, "", 0, Side.BUY, Purpose.ENTRY, u.qty, u.px, u.px)) for u in fills), D(0))

    def make(self, *faults: str) -> Broker:
        changes = {k: v for f in faults for k, v in FAULTS[f].items()}
        self.cfg, self.books, self.n = self.base.model_copy(update=changes), empty_depth(2), self.n + 1
        return self._open()

    def _open(self) -> Broker:
        self.broker = PaperBroker(UNI, self.cfg, self.books, fee, self.folder / f"venue{self.n}.jsonl")
        self.broker.connect(self.now)
        return self.broker

    def restart(self) -> Broker:
        assert self.broker.venue.log is not None
        self.broker.venue.log.close()  # the kernel does this for a killed process
        return self._open()

    def settle(self) -> list[Update]:
        out: list[Update] = []
        while (t := self.broker.next_ts()) != NEVER:
            self.now = max(self.now, t)
            out += self.broker.poll(self.now)
        self.now = max([self.now + MS, *(end for _, end in self.broker.venue.cfg.disconnects)])  # a test goes on when the line is back
        return out

    def row(self, sym: int, bids: Sequence[tuple[float, float]], asks: Sequence[tuple[float, float]], ltp: float,
            traded: float = 0, halted: bool = False) -> list[Update]:
        out = self.settle()
        self.books[sym] = depth_row(self.now, sym, bids, asks, ltp=ltp, flags=FLAG_HALT if halted else 0)[0]
        if pauses(self.books[sym:sym + 1], self.broker.watch)[0]: self.broker.on_row(self.books[sym:sym + 1], traded)
        return out

    def disconnect(self, ns: int) -> None:
        self.broker.venue.cfg = self.cfg = self.cfg.model_copy(update={"disconnects": ((self.now, self.now + ns),)})


CONFIGS = {"default": PaperConfig(), "angel": angel_like(), "alpaca": alpaca_like(), "jitter": PaperConfig(latency_sigma=0.8, seed=5),
           "instant": PaperConfig(order_latency_ns=1, response_latency_ns=1)}


class TestPaper(BrokerConformance):
    @pytest.fixture(params=list(CONFIGS))
    def venue(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[PaperDriver]:
        driver = PaperDriver(CONFIGS[request.param], tmp_path)
        yield driver
        if hasattr(driver, "broker"): driver.broker.close(driver.now)


# ---------------------------------------------------------------- random markets

def random_row(r: random.Random, ts: int, sym: int, mid: int) -> Rows:
    "Five levels round `mid` (in ticks of 0.05), sometimes gappy, one-sided, crossed, halted or without a last price."
    def px(t: int) -> float: return t * 5 / 100
    bids, asks, b, a = [], [], mid - r.randint(0, 2), mid + 1 + r.randint(-1, 2)
    for _ in range(r.choice((0, 1, 3, 5, 5, 5, 5))): bids.append((px(b), float(r.choice((1, 5, 20, 80))))); b -= r.choice((1, 1, 2))
    for _ in range(r.choice((0, 1, 3, 5, 5, 5, 5))): asks.append((px(a), float(r.choice((1, 5, 20, 80))))); a += r.choice((1, 1, 2))
    ltp = math.nan if r.random() < 0.05 else px(mid + r.randint(-3, 3))
    return depth_row(ts, sym, bids, asks, ltp=ltp, flags=FLAG_HALT if r.random() < 0.05 else 0)


def random_intent(r: random.Random, n: int, sym: int, mid: int, ts: int) -> Intent:
    side, kind, tif = Side(r.choice((1, -1))), r.choice(list(OrderType)), r.choice((Tif.DAY, Tif.GTC))
    if kind in (OrderType.MARKET, OrderType.LIMIT) and r.random() < 0.2: tif = Tif.IOC
    trig = D(mid + side * r.randint(-1, 6)) * D("0.05")
    limit = (trig if kind is OrderType.STOP_LIMIT else D(mid) * D("0.05")) + D(r.randint(-6, 6)) * D("0.05")
    return Intent(f"order-{n:06d}", ts, n, "a", "s", UNI[sym].symbol, sym, side, Purpose.ENTRY, D(r.choice((1, 7, 30, 120))), kind,
                  limit if kind in (OrderType.LIMIT, OrderType.STOP_LIMIT) else None,
                  trig if kind in (OrderType.STOP, OrderType.STOP_LIMIT) else None,
                  tif, D(mid) * D("0.05"), oco=r.choice(("", "", f"g{n // 4}")))


def drive(seed: int, cfg: PaperConfig, every_row: bool, rows: int = 150, narrow: float = 0.0, log: Path | None = None) -> tuple[list[Any], Any, int]:
    "One random session; returns all updates with their arrival, the final state, and how many rows the venue saw."
    r, books, mids = random.Random(seed), empty_depth(2), [2000, 2000]
    b = PaperBroker(UNI, cfg, books, fee, log, session_ends=(120 * MS, 10**15))
    got: list[Any] = []
    ts = shown = n = 0
    for _ in range(rows):
        ts += r.choice((1, 300_000, MS, 3 * MS))
        while b.next_ts() <= ts: got += [(b.next_ts(), u) for u in b.poll(b.next_ts())]
        sym = r.randint(0, 1)
        mids[sym] += r.randint(-2, 2)
        row, traded = random_row(r, ts, sym, mids[sym]), float(r.choice((0, 0, 1, 10, 60)))
        books[sym] = row[0]
        band = b.watch + np.array([-narrow, narrow]) if narrow else b.watch
        if every_row or pauses(row, band)[0]:
            b.on_row(row, traded)
            shown += 1
        if r.random() < 0.3: n += 1; b.submit(random_intent(r, n, sym, mids[sym], ts), ts)
        if n and r.random() < 0.1: b.cancel(f"order-{r.randint(1, n):06d}", ts)
    while b.next_ts() < 10**15: got += [(b.next_ts(), u) for u in b.poll(b.next_ts())]
    final = b.state(ts)
    b.close(ts)
    return got, final, shown


LIVELY = {"latency_sigma": 0.5, "partial_prob": 0.3, "late_fill_prob": 0.2, "duplicate_update_prob": 0.2, "lost_ack_prob": 0.1, "reject_prob": 0.05}


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32), native=st.booleans(), trigger=st.sampled_from(["last", "touch", "either"]), lively=st.booleans())
def test_rows_inside_the_band_cannot_matter(seed: int, native: bool, trigger: str, lively: bool) -> None:
    cfg = PaperConfig(seed=seed, native_oco=native, trigger=trigger, **(LIVELY if lively else {}))
    full, watched = drive(seed, cfg, True), drive(seed, cfg, False)
    assert full[:2] == watched[:2]
    assert full == drive(seed, cfg, True), "the same tape and orders must give the same session"


def test_the_band_matters_and_saves_work() -> None:
    cfgs = [PaperConfig(seed=s) for s in range(20)]
    runs = [(drive(c.seed, c, True), drive(c.seed, c, False), drive(c.seed, c, False, narrow=0.2)) for c in cfgs]
    assert sum(w[2] for _, w, _ in runs) < sum(f[2] for f, _, _ in runs)
    assert any(f[0] != n[0] for f, _, n in runs), "a band that is too wide open must lose fills, or the test above proves nothing"
    assert sum(u.kind is UpdateKind.FILL for f, _, _ in runs for _, u in f[0]) > 100


QUEUE_ROW = st.tuples(st.sampled_from([0, 4, 9, 25, 60]), st.sampled_from([99.95, 100.0, 100.05]), st.sampled_from([0, 1, 6, 30]), st.booleans())


@settings(max_examples=300, deadline=None)
@given(start=st.sampled_from([0, 9, 60]), qty=st.integers(1, 40), tape=st.lists(QUEUE_ROW, max_size=25))
def test_queue_against_a_scalar_model(start: int, qty: int, tape: list[tuple[int, float, int, bool]]) -> None:
    "One buy at 100.00, never crossed: what the risk-averse queue model gives, worked out with three numbers."
    def show(ts: int, at_price: int, ltp: float, halted: bool = False) -> Rows:
        bids = [(100.0, float(at_price))] * (at_price > 0) + [(99.9, 50.0)]
        return depth_row(ts, 0, bids, [(100.1, 1000.0)], ltp=ltp, flags=FLAG_HALT if halted else 0)

    books, ahead, left = empty_depth(2), start, qty
    books[0] = show(1, start, 100.05)[0]
    b = PaperBroker(UNI, PaperConfig(), books)
    b.submit(Intent("order-000001", 0, 1, "a", "s", "AAA", 0, Side.BUY, Purpose.ENTRY, D(qty), OrderType.LIMIT, D(100), None, Tif.DAY, D(100)), 0)
    b.poll(2 * MS)
    for k, (shown, ltp, traded, halted) in enumerate(tape):
        books[0] = show((3 + k) * MS, shown, ltp, halted)[0]
        b.on_row(books[0:1], traded)
        if not halted and left:
            if ltp < 100 and traded: ahead = 0
            if ltp <= 100:
                got = min(left, max(0, traded - ahead))
                left, ahead = left - got, max(0, ahead - traded)
            ahead = min(ahead, shown)
        (o,) = b.state((3 + k) * MS).orders or (None,)
        assert (int(o.qty - o.filled) if o else 0) == left
        if o: assert b.venue.ex.live[0][0].queue == to_units(Decimal(ahead))


# ---------------------------------------------------------------- conservation

class Conservation(RuleBasedStateMachine):
    "Any orders, any market, any faults, restarts included: money and shares are conserved and every fill is heard of or found."
    def __init__(self) -> None:
        super().__init__()
        import tempfile
        self.dir = tempfile.TemporaryDirectory()
        self.r, self.books, self.now, self.n, self.mid = random.Random(0), empty_depth(2), MS, 0, [2000, 2000]
        self.sent: dict[str, Intent] = {}
        self.seen, self.lost = Seen(), False
        self.cfg = PaperConfig(cash=D(60_000), leverage=D(2), **LIVELY)
        self.open()

    def open(self) -> None: self.b = PaperBroker(UNI, self.cfg, self.books, fee, Path(self.dir.name) / "venue.jsonl")

    @rule(seed=st.integers(0, 10**6))
    def reseed(self, seed: int) -> None: self.r.seed(seed)

    @rule(sym=st.integers(0, 1))
    def submit(self, sym: int) -> None:
        self.n += 1
        i = random_intent(self.r, self.n, sym, self.mid[sym], self.now)
        self.sent[i.id] = i
        self.b.submit(i, self.now)

    @rule(k=st.integers(0, 40), again=st.booleans())
    def meddle(self, k: int, again: bool) -> None:
        if not self.sent: return
        i = list(self.sent.values())[k % len(self.sent)]
        if again: self.b.submit(i, self.now)
        else: self.b.cancel(i.id, self.now)

    @rule(sym=st.integers(0, 1), up=st.integers(-4, 4), traded=st.sampled_from([0.0, 5.0, 100.0]))
    def row(self, sym: int, up: int, traded: float) -> None:
        self.wait(1)
        self.mid[sym] += up
        self.books[sym] = random_row(self.r, self.now, sym, self.mid[sym])[0]
        self.b.on_row(self.books[sym:sym + 1], traded)

    @rule(ns=st.sampled_from([1, MS, 20 * MS]))
    def wait(self, ns: int) -> None:
        self.now += ns
        while self.b.next_ts() <= self.now: self.seen.add(self.b.poll(self.b.next_ts()))

    @rule()
    def crash(self) -> None:
        assert self.b.venue.log is not None
        before = self.b.state(self.now)
        self.b.venue.log.close()
        self.open()
        self.lost = True
        assert self.b.state(self.now) == before

    @invariant()
    def conserved(self) -> None:
        s = self.b.state(self.now)
        pos: dict[str, Decimal] = {}
        cash, cum, group = self.cfg.cash, dict[str, Decimal](), dict[tuple[int, str], Decimal]()
        for u in s.fills:
            i = self.sent[u.client_id]
            pos[i.symbol] = pos.get(i.symbol, D(0)) + u.qty * int(i.side)
            cash -= u.qty * u.px * int(i.side) + fee(Fill(u.ts, i.id, u.exec_id, i.symbol, i.sym, i.side, i.purpose, u.qty, u.px, i.ref_px))
            cum[i.id] = cum.get(i.id, D(0)) + u.qty
            assert u.cum_qty == cum[i.id] <= i.qty and u.qty > 0 and u.qty % 1 == 0
            if i.limit is not None: assert (u.px - i.limit) * int(i.side) <= 0
            if i.oco: group[i.sym, i.oco] = group.get((i.sym, i.oco), D(0)) + u.qty
        assert s.account.cash == cash
        assert {n: q for n, q, _ in s.positions} == {n: q for n, q in pos.items() if q}
        assert len({u.exec_id for u in s.fills}) == len(s.fills)
        for (sym, name), q in group.items(): assert q <= max(i.qty for i in self.sent.values() if i.sym == sym and i.oco == name)
        for o in s.orders: assert o.filled == cum.get(o.intent_id, D(0)) < o.qty <= self.sent[o.intent_id].qty

    def teardown(self) -> None:
        self.wait(10**10)
        truth = {u.exec_id: u for u in self.b.state(self.now).fills}
        heard = self.seen.fills
        assert heard == truth if not self.lost else heard.items() <= truth.items()
        assert self.b.next_ts() == NEVER
        self.b.close(self.now)
        self.dir.cleanup()


TestConservation = Conservation.TestCase
TestConservation.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))


# ---------------------------------------------------------------- crashes

def test_restores_from_every_prefix_of_its_log(tmp_path: Path) -> None:
    p = tmp_path / "venue.jsonl"
    _, final, _ = drive(3, PaperConfig(seed=3, **LIVELY), True, log=p)
    lines = p.read_bytes().splitlines(keepends=True)
    seen = {json.loads(x)["k"] for x in lines}
    assert len(lines) > 60 and seen >= {"open", "wire", "ack", "reject", "fill", "canceled", "trigger", "cancel_rejected"}
    for k in range(len(lines) + 1):
        p.write_bytes(b"".join(lines[:k]) + (lines[k][:len(lines[k]) // 2] if k < len(lines) else b""))
        events = [json.loads(x) for x in lines[:k]]
        b = PaperBroker(UNI, PaperConfig(seed=3), empty_depth(2), fee, p, session_ends=(120 * MS, 10**15))
        told = [e for e in events if e["k"] == "fill"]
        assert [u.exec_id for u in b.venue.fills] == [e["exec"] for e in told]
        acked = {e["id"] for e in events if e["k"] == "ack"}
        assert set(b.venue.ex.orders) == acked
        sent, answered = {e["id"] for e in events if e.get("op") == "submit"}, {e["id"] for e in events if e["k"] in ("ack", "reject")}
        assert {w[3] for w in b.venue.wire if w[2] == "submit"} == sent - answered
        b.poll(10**14)  # and it goes on working, on a file that can be read again
        state = b.state(10**14)
        b.close(0)
        b = PaperBroker(UNI, PaperConfig(seed=3), empty_depth(2), fee, p, session_ends=(120 * MS, 10**15))
        assert b.state(10**14) == state
        b.close(0)
    b = PaperBroker(UNI, PaperConfig(seed=3), empty_depth(2), fee, p, session_ends=(120 * MS, 10**15))
    assert b.state(0).account.cash == final.account.cash
    b.close(0)


CHILD = textwrap.dedent("""
    import sys
    from decimal import Decimal as D
    from pathlib import Path
    from scalp_nb.broker.paper import PaperBroker, PaperConfig
    from scalp_nb.feed.depth import depth_row, empty_depth
    from scalp_nb.feed.instrument import Instrument, Universe
    from scalp_nb.order.types import *
    uni, books, ts = Universe("pair", (Instrument("AAA", "NSE"), Instrument("BBB", "NSE"))), empty_depth(2), int(sys.argv[2])
    b = PaperBroker(uni, PaperConfig(), books, log=Path(sys.argv[1]))
    print("ready", flush=True)
    while True:
        ts += 10_000_000
        books[0] = depth_row(ts, 0, [(99.95, 30)], [(100.05, 20)], ltp=100)[0]
        side = Side.BUY if ts // 10_000_000 % 2 else Side.SELL
        b.submit(Intent(f"order-{ts}", ts, 1, "a", "s", "AAA", 0, side, Purpose.ENTRY, D(5), OrderType.MARKET, None, None, Tif.DAY, D(100)), ts)
        for u in b.poll(ts + 5_000_000):
            if u.kind is UpdateKind.FILL: print(u.exec_id, flush=True)
""")


def test_kill_9_forgets_nothing_it_told(tmp_path: Path) -> None:
    p, env = tmp_path / "venue.jsonl", {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    told: set[str] = set()
    for k in range(5):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(p), str(k * 10**12)], stdout=subprocess.PIPE, text=True, env=env)
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        with pytest.raises(BrokerError, match=str(child.pid)): PaperBroker(UNI, PaperConfig(), empty_depth(2), log=p)
        told |= {child.stdout.readline().strip() for _ in range(20 + 37 * k)}
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read().splitlines(keepends=True)
        told |= {x.strip() for x in rest if x.endswith("\n")}
        child.wait()
        child.stdout.close()
        b = PaperBroker(UNI, PaperConfig(), empty_depth(2), log=p)
        remembered = [u.exec_id for u in b.state(0).fills]
        assert told <= set(remembered) and len(remembered) == len(set(remembered))
        b.close(0)


def test_a_full_disk_closes_the_venue(tmp_path: Path) -> None:
    if not os.path.exists("/dev/full"): pytest.skip("no /dev/full on this system")
    books = empty_depth(2)
    books[0] = depth_row(1, 0, [(99.95, 30)], [(100.05, 20)], ltp=100)[0]
    b = PaperBroker(UNI, PaperConfig(), books, log=tmp_path / "venue.jsonl")
    r = random.Random(1)
    b.submit(random_intent(r, 1, 0, 2000, 0), 0)
    assert b.venue.log is not None
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, b.venue.log.fd)
    os.close(full)
    with pytest.raises(BrokerError, match="venue.jsonl"): b.poll(10 * MS)
    for use in (lambda: b.submit(random_intent(r, 2, 0, 2000, 0), 0), lambda: b.poll(20 * MS), lambda: b.state(20 * MS), lambda: b.connect(20 * MS)):
        with pytest.raises(BrokerError, match="closed"): use()
    again = PaperBroker(UNI, PaperConfig(), books, log=tmp_path / "venue.jsonl")  # the lock is free, the order is still on the wire
    assert again.next_ts() == MS
    again.close(0)
