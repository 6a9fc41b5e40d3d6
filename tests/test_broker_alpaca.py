"""The Alpaca broker against the practice venue: the conformance suite, and what the fact sheet says goes wrong."""
from __future__ import annotations

import os
import selectors
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

pytest.register_assert_rewrite("broker_conformance")
from broker_conformance import ASKS, BIDS, BrokerConformance, Seen  # noqa: E402
from realdata import realdata  # noqa: E402

pytest.importorskip("alpaca")

from scalp_nb.broker.alpaca import AlpacaBroker, AlpacaConfig, ask  # noqa: E402
from scalp_nb.broker.alpaca_models import read_account, read_event, read_order, read_position, state_of  # noqa: E402
from scalp_nb.broker.base import Broker, BrokerError  # noqa: E402
from scalp_nb.feed.depth import FLAG_HALT, depth_row  # noqa: E402
from scalp_nb.feed.instrument import Instrument, Universe  # noqa: E402
from scalp_nb.order.types import Intent, OrderState, OrderType, Purpose, Side, Tif, Update, UpdateKind  # noqa: E402
from scalp_nb.practice.alpaca import PracticeServer  # noqa: E402
from scalp_nb.practice.alpaca_orders import AlpacaTerms  # noqa: E402
from scalp_nb.practice.venue import make_tape, step_clock  # noqa: E402

D, MS, K = Decimal, 1_000_000, UpdateKind
UNI = Universe("pair", (Instrument("AAA", "US", currency="USD"), Instrument("BBB", "US", currency="USD")))
START = 1_795_100_400_000_000_000  # 2026-11-19 15:00 UTC, 10:00 in New York
TERMS = AlpacaTerms(rate_limit=100_000)


class Proxy:
    "A line that can be cut, and that can lose the answers to orders; one thread."
    def __init__(self, port: int) -> None:
        self.target, self.modes = port, set[str]()
        self.sel, self.pairs, self.posted = selectors.DefaultSelector(), dict[socket.socket, socket.socket](), set[socket.socket]()
        self.streams: set[socket.socket] = set()
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port, self.stop = self.server.getsockname()[1], False
        self.sel.register(self.server, selectors.EVENT_READ)
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        while not self.stop:
            for key, _ in self.sel.select(0.02):
                if key.fileobj is self.server: self.accept()
                else: self.move(key.fileobj, key.data)  # type: ignore[arg-type]
        for s in list(self.pairs): self.drop(s)
        self.server.close()

    def accept(self) -> None:
        a, _ = self.server.accept()
        if "down" in self.modes: return a.close()
        b = socket.create_connection(("127.0.0.1", self.target))
        for x, y, side in ((a, b, "client"), (b, a, "server")):
            x.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.pairs[x] = y
            self.sel.register(x, selectors.EVENT_READ, side)

    def move(self, s: socket.socket, side: str) -> None:
        if s not in self.pairs: return
        try: data = s.recv(65536)
        except OSError: data = b""
        other = self.pairs[s]
        if side == "client" and data.startswith(b"GET /stream"): self.streams |= {s, other}
        if not data or ("down" in self.modes and s not in self.streams): return self.drop(s)
        if side == "client" and data.startswith((b"GET ", b"POST ", b"DELETE ")):
            (self.posted.add if data.startswith(b"POST") else self.posted.discard)(s)
        if side == "server" and "lost_ack" in self.modes:
            if s in self.streams: return  # updates get lost as well
            if other in self.posted: return self.drop(s)
        other.sendall(data)

    def drop(self, s: socket.socket) -> None:
        for x in (s, self.pairs.get(s)):
            if x is None or x not in self.pairs: continue
            self.sel.unregister(x)
            del self.pairs[x]
            x.close()

    def cut(self) -> None:
        "End every connection, the update stream too."
        for s in list(self.pairs):
            try: s.shutdown(socket.SHUT_RDWR)
            except OSError: continue


def config(port: int, **over: Any) -> AlpacaConfig:
    base = {"url": f"http://127.0.0.1:{port}", "per_minute": 10_000, "reserve": 10, "settle_s": 0.3, "read_timeout_s": 2.0, "first_wait_s": 0.02,
            "position_lag_s": 1.0, "attempts": 2}
    return AlpacaConfig(**{**base, **over})


class AlpacaDriver:
    "Steers the practice venue on a stepped clock, with a line between it and the broker."
    universe = UNI
    faults = frozenset({"reject", "lost_ack", "disconnect", "restart", "halt"})
    cash = D(100_000)

    def __init__(self) -> None: self.server: PracticeServer | None = None

    def fees(self, fills: Sequence[Update], sent: dict[str, Intent]) -> Decimal: return D(0)

    @property
    def now(self) -> int:
        assert self.server is not None
        return self.server.api.desk.clock.now()

    def make(self, *faults: str, **terms: Any) -> Broker:
        self.stop()
        more = {"untradable": frozenset(UNI.symbols)} if "reject" in faults else {}
        self.volume = [0.0, 0.0]
        tape = make_tape(np.concatenate([depth_row(START - 2 * MS + s, s, BIDS, ASKS, ltp=100.0, volume=0.0) for s in range(2)]), UNI,
                         bars=np.zeros(0, _bar_dtype()))
        self.server = PracticeServer(tape, TERMS.model_copy(update={**more, **terms}), speed=0, start=START).start()
        self.said = 0
        self.server.api.orders.tell.append(self._count)
        self.proxy = Proxy(self.server.port)
        self.base = 0
        self._open()
        if "lost_ack" in faults: self.proxy.modes.add("lost_ack")
        return self.broker

    def _count(self, data: dict[str, Any]) -> None: self.said += 1

    def _open(self) -> None:
        assert self.server is not None
        self.base = self.said
        self.broker = AlpacaBroker(UNI, config(self.proxy.port), TERMS.key, TERMS.secret, self.server.api.desk.clock.now)
        self.broker.connect(self.now)

    def restart(self) -> Broker:
        self.broker.close(self.now)
        self._open()
        return self.broker

    def stop(self) -> None:
        if self.server is None: return
        self.broker.close(self.now)
        self.proxy.stop = True
        self.proxy.thread.join(2)
        self.server.stop()
        self.server = None

    def quiet(self) -> bool:
        heard = "lost_ack" in self.proxy.modes or self.broker.stats.events + self.base >= self.said
        return not self.broker._lanes.busy and heard

    def settle(self) -> list[Update]:
        until = time.monotonic() + 10
        while not self.quiet() and time.monotonic() < until: time.sleep(0.002)
        assert self.quiet(), "the broker did not come to rest"
        if "down" in self.proxy.modes: self.proxy.modes.discard("down")
        self.step(MS)
        return self.broker.poll(self.now)

    def step(self, ns: int) -> None:
        "Let venue time pass, and wait until the venue is there."
        assert self.server is not None
        desk, until = self.server.api.desk, time.monotonic() + 10
        now = step_clock(desk.clock, ns)
        while desk.at < now and time.monotonic() < until: time.sleep(0.001)
        assert desk.at >= now, f"the venue stopped: {self.server.error!r}"

    def row(self, sym: int, bids: Sequence[tuple[float, float]], asks: Sequence[tuple[float, float]], ltp: float,
            traded: float = 0, halted: bool = False) -> list[Update]:
        out = self.settle()
        assert self.server is not None
        desk = self.server.api.desk
        self.volume[sym] += traded
        r = depth_row(self.now + MS, sym, bids, asks, ltp=ltp, volume=self.volume[sym], flags=FLAG_HALT if halted else 0)
        desk.tape = replace(desk.tape, rows=np.concatenate([desk.tape.rows, r]))
        self.step(2 * MS)
        return out

    def disconnect(self, ns: int) -> None:
        self.proxy.modes.add("down")
        for s in [s for s in list(self.proxy.pairs) if s not in self.proxy.streams]:
            try: s.shutdown(socket.SHUT_RDWR)
            except OSError: continue
        time.sleep(0.06)


def _bar_dtype() -> np.dtype[Any]:
    from scalp_nb.feed.bars import BAR
    return BAR


@pytest.fixture
def venue() -> Iterator[AlpacaDriver]:
    driver = AlpacaDriver()
    yield driver
    driver.stop()


class TestAlpaca(BrokerConformance):
    def test_state_is_the_sum_of_fills(self, venue: AlpacaDriver) -> None:
        "The suite's own sequence turns a long position into a short one with one order, which Alpaca refuses: flat first here."
        b, seen = self.start(venue)
        for side, qty, limit, sym in ((1, 25, "100.1", 0), (-1, 40, "99.9", 1), (-1, 25, "99.85", 0), (-1, 35, "99.8", 0), (1, 40, "100.1", 1)):
            self.send(venue, b, seen, self.order(venue, b, Side(side), qty, limit, sym=sym))
        self.send(venue, b, seen, self.order(venue, b, Side.BUY, 7, "99", sym=1))
        st = self.agree(venue, b, seen)
        assert [(s, q) for s, q, _ in st.positions] == [(venue.universe[0].symbol, -35)] and len(st.orders) == 1
