"""The Angel One broker against the practice venue: the conformance suite, and what the fact sheet says goes wrong."""
from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

pytest.register_assert_rewrite("broker_conformance")
from broker_conformance import ASKS, BIDS, BrokerConformance, Seen  # noqa: E402
from broker_line import Proxy, wait_until  # noqa: E402

pytest.importorskip("pyotp")

from scalp_nb.broker.angel_one import AngelBroker  # noqa: E402
from scalp_nb.broker.angel_one import _message as hear  # noqa: E402
from scalp_nb.broker.angel_sdk import AngelConfig, AngelError, AngelLogin, AngelLoginError, AngelSession  # noqa: E402
from scalp_nb.broker.base import Broker, BrokerState  # noqa: E402
from scalp_nb.feed.bars import BAR  # noqa: E402
from scalp_nb.feed.depth import FLAG_HALT, depth_row  # noqa: E402
from scalp_nb.feed.instrument import Instrument, Universe  # noqa: E402
from scalp_nb.order.types import Intent, OrderState, Purpose, Side, Update, UpdateKind  # noqa: E402
from scalp_nb.practice.angel_one import AngelServer  # noqa: E402
from scalp_nb.practice.angel_orders import AngelTerms  # noqa: E402
from scalp_nb.practice.venue import Tape, make_tape, step_clock  # noqa: E402
from scalp_nb.trader.streaming import Auditor, venue_clock  # noqa: E402

D, MS, S, K = Decimal, 1_000_000, 10**9, UpdateKind
UNI = Universe("pair", (Instrument("AAA", "NSE", "900001"), Instrument("BBB", "NSE", "900002")))
START = 1_795_066_200_000_000_000  # 2026-11-19 11:00 in India
TERMS = AngelTerms(cash=D(100_000), stage_ms=5)


def market() -> Tape:
    rows = np.concatenate([depth_row(START - 2 * MS + s, s, BIDS, ASKS, ltp=100.0, volume=0.0) for s in range(2)])
    return make_tape(rows, UNI, bars=np.zeros(0, BAR))


def login_of(t: AngelTerms, **over: str) -> AngelLogin:
    return AngelLogin(**{"api_key": t.api_key, "client_code": t.client_code, "pin": t.pin, "totp_secret": t.totp_secret, **over})


def config(url: str, **over: Any) -> AngelConfig:
    return AngelConfig(**{"url": url, "updates_url": f"{url.replace('http', 'ws', 1)}/smart-order-update", "settle_s": 1.0, "read_timeout_s": 2.0,
                          "first_wait_s": 0.02, "attempts": 2, "totp_once": False, **over})


class Stepped(AngelBroker):
    "Its waiting calls are made while the venue's clock goes on."
    tick: Any = None

    def connect(self, ts: int) -> None:
        with ticking(self.tick): super().connect(ts)

    def state(self, ts: int) -> BrokerState:
        with ticking(self.tick): return super().state(ts)


@contextmanager
def ticking(step: Any) -> Iterator[None]:
    over = threading.Event()
    def run() -> None:
        while not over.wait(0.002): step(100 * MS)
    t = threading.Thread(target=run, daemon=True)
    t.start()
    try: yield
    finally:
        over.set()
        t.join()


class AngelDriver:
    "Steers the practice venue on a stepped clock, with a line between it and the broker. The venue's limits are on: a request too many is a failure."
    universe = UNI
    faults = frozenset({"reject", "lost_ack", "disconnect", "restart", "halt"})
    cash = D(100_000)
    hold = False  # the line stays down over a settle

    def __init__(self) -> None: self.server: AngelServer | None = None

    def fees(self, fills: Sequence[Update], sent: dict[str, Intent]) -> Decimal: return D(0)

    @property
    def now(self) -> int:
        assert self.server is not None
        return self.server.api.desk.clock.now()

    def make(self, *faults: str, **terms: Any) -> AngelBroker:
        self.stop()
        more = {"surveillance": frozenset(UNI.symbols)} if "reject" in faults else {}
        self.volume = [0.0, 0.0]
        self.server = AngelServer(market(), TERMS.model_copy(update={**more, **terms}), speed=0, start=START).start()
        self.said = 0
        self.server.api.orders.tell.append(self._count)
        self.proxy = Proxy(self.server.port, b"GET /smart-order-update")
        self._open()
        if "lost_ack" in faults: self.proxy.modes.add("lost_ack")
        return self.broker

    def _count(self, *args: Any) -> None: self.said += 1

    def _open(self) -> None:
        assert self.server is not None
        self.broker = Stepped(UNI, config(f"http://127.0.0.1:{self.proxy.port}"), login_of(self.server.terms), self.server.api.desk.clock.now)
        self.broker.tick = self.step
        for s in UNI.symbols: self.broker.set_band(s, D(90), D(110))   # the venue cannot quote rows that were added to its tape
        self.broker.connect(self.now)
        wait_until(lambda: self.broker.stats.events > 0)   # AB00, connected
        self.base = self.said - self.broker.stats.events

    def restart(self) -> Broker:
        self.broker.close(self.now)
        self.step(S + MS)   # one login a second
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
        b = self.broker
        up = "down" not in self.proxy.modes   # else nobody can tell what became of a change
        heard = "lost_ack" in self.proxy.modes or b.stats.events + self.base >= self.said
        waiting = b._hints or b._later or b._compare or b._busy or any(k.asked or k.cancels or (k.change and up) for k in list(b._known.values()))
        return not b._lanes.busy and heard and not waiting

    def settle(self) -> list[Update]:
        until, calm = time.monotonic() + 20, 0
        while calm < 3:
            assert time.monotonic() < until, f"the broker did not come to rest: {self.broker._known} {self.broker.stats}"
            calm = calm + 1 if self.quiet() else 0
            if not calm: self.step(50 * MS)
            time.sleep(0.001)
        if not self.hold: self.proxy.modes.discard("down")
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


@pytest.fixture
def venue() -> Iterator[AngelDriver]:
    driver = AngelDriver()
    yield driver
    limited = driver.broker.stats.limited if driver.server is not None else 0
    driver.stop()
    assert limited <= 1, "asked too often"   # one is a race of two clocks on a busy machine, more would be a habit


class TestAngel(BrokerConformance):
    def executes(self, venue: AngelDriver, i: Intent) -> None:  # type: ignore[override]
        "An order takes three stages of venue time to the exchange; a cancel that comes earlier wins."
        def complete() -> bool:
            venue.step(5 * MS)
            assert venue.server is not None
            return any(t.tag == i.id and t.status == "complete" for t in venue.server.api.orders.tickets.values())
        wait_until(complete)

    def test_lost_ack_then_query(self, venue: AngelDriver) -> None:
        "The suite expects silence until somebody asks; here the order book is read anyway and shows the tag by itself."
        b, seen = self.start(venue, "lost_ack")
        i = self.order(venue, b, Side.BUY, 10, "99.5")
        self.send(venue, b, seen, i)
        wait_until(lambda: K.ACK in seen.add(venue.settle()).kinds.get(i.id, []))
        assert seen.kinds[i.id] == [K.NO_ANSWER, K.ACK]
        b.query(i.id, venue.now); seen.add(venue.settle())
        assert seen.last(i.id, K.STATUS).state is OrderState.OPEN
        assert [o.intent_id for o in self.agree(venue, b, seen).orders] == [i.id]

    # ---- what the fact sheet says goes wrong
    def test_an_execution_hinted_again_is_told_once(self, venue: AngelDriver) -> None:
        b, seen = self.start(venue)
        heard: list[bytes] = []
        assert venue.server is not None
        def keep(code: str, ticket: Any, row: Any) -> None:
            heard.append(json.dumps({"user-id": "x", "status-code": "200", "order-status": code, "error-message": "", "orderData": row}).encode())
        venue.server.api.orders.tell.append(keep)
        i = self.order(venue, b, Side.BUY, 10, "100.05")
        self.send(venue, b, seen, i)
        venue.base -= 2 * len(heard)
        for raw in [*heard, *reversed(heard), b"{broken", b"[]", b"pong"]: hear(b, raw)   # the old states, after the new one
        seen.add(venue.settle())
        assert seen.kinds[i.id] == [K.ACK, K.FILL] and venue.broker.stats.unreadable == 2
        self.agree(venue, b, seen)

    def test_the_order_socket_may_be_away(self, venue: AngelDriver) -> None:
        b, seen = self.start(venue)
        i = self.order(venue, b, Side.BUY, 10, "99.5")
        self.send(venue, b, seen, i)
        venue.proxy.modes.add("lost_ack")   # whatever the socket says is lost
        venue.proxy.cut()
        seen.add(venue.row(0, ((99.3, 9.0),), ((99.4, 100.0),), 99.4, traded=50))
        more = self.order(venue, b, Side.BUY, 5, "99.4", sym=1)
        venue.proxy.modes.discard("lost_ack")
        venue.base -= 1_000_000   # what was said meanwhile is not waited for
        b.submit(more, venue.now)
        def done() -> bool:
            venue.step(20 * MS)
            seen.add(b.poll(venue.now))
            return seen.filled(i.id) == 10 and K.ACK in seen.kinds.get(more.id, [])
        wait_until(done)
        assert b.up and "order socket" in " ".join(n.text for n in b.news())
        self.agree(venue, b, seen)

    @pytest.mark.parametrize("terms, side, qty, limit, reason", [
        ({"surveillance": frozenset({"AAA"})}, 1, 10, "100", "surveillance"), ({"not_shortable": frozenset({"AAA"})}, -1, 10, "100", "not_shortable"),
        ({}, 1, 90_000, "100", "buying_power"), ({"static_ip_ok": False}, 1, 10, "100", "ip_not_registered"), ({}, 1, 10, "115", "band")])
    def test_refusals_have_their_own_reasons(self, venue: AngelDriver, terms: Any, side: int, qty: int, limit: str, reason: str) -> None:
        venue.make(**terms)
        seen = Seen()
        for s in range(2): seen.add(venue.row(s, BIDS, ASKS, 100.0))
        self.sent = {}
        i = self.order(venue, venue.broker, Side(side), qty, limit)
        self.send(venue, venue.broker, seen, i)
        assert seen.kinds[i.id] == [K.REJECT] and seen.last(i.id, K.REJECT).reason == reason and seen.last(i.id, K.REJECT).text
        assert venue.server is not None and not [t for t in venue.server.api.orders.tickets.values() if t.open]

    def test_a_session_that_ends_in_the_middle(self, venue: AngelDriver) -> None:
        b, seen = self.start(venue)
        i = self.order(venue, b, Side.BUY, 10, "99.5")
        self.send(venue, b, seen, i)
        assert venue.server is not None
        venue.step(31 * S)
        venue.server.post("expire")
        b.cancel(i.id, venue.now)
        seen.add(venue.settle())
        wait_until(lambda: K.CANCELED in seen.add(venue.settle()).kinds[i.id])
        assert venue.broker.session.logins == 2
        self.agree(venue, b, seen)

    def test_ten_cancels_leave_within_two_seconds_of_the_venue(self, venue: AngelDriver) -> None:
        b, seen = self.start(venue)
        orders = [replace(self.order(venue, b, Side.BUY, 1, "99.5", sym=k % 2), purpose=Purpose.TARGET) for k in range(10)]
        self.send(venue, b, seen, *orders)
        at = venue.now
        for i in orders: b.cancel(i.id, venue.now)
        assert b.poll(at) == [] and b._lanes.busy   # called, not waited for
        wait_until(lambda: not venue.step(20 * MS) and venue.broker.stats.cancels == 10 and not b._lanes.busy)
        assert venue.now - at < 2 * S   # eight in a second
        seen.add(venue.settle())
        assert all(seen.kinds[i.id] == [K.ACK, K.CANCELED] for i in orders)

    def test_pictures_beside_the_trading_thread(self, venue: AngelDriver) -> None:
        b, _ = self.start(venue)
        auditor = Auditor(b, 3600 * S, lambda: 0)
        assert auditor.turn(venue.now) is None   # begun, not waited for

        def taken() -> bool:
            got = auditor.turn(venue.now)
            return isinstance(got, BrokerState) and got.account.cash == venue.cash
        wait_until(taken)
        auditor.close()


# ---- the login, as the venue checks it
@pytest.mark.parametrize("over, skew, words", [
    ({"pin": "9999"}, 0, "ANGEL_PIN"), ({"totp_secret": "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"}, 0, "ANGEL_TOTP_SECRET"),
    ({"api_key": "Wrong"}, 0, "ANGEL_API_KEY"), ({}, 120, "120 s behind"), ({}, -120, "120 s ahead")])
def test_a_refused_login_says_why(over: dict[str, str], skew: float, words: str) -> None:
    with AngelServer(market(), TERMS, speed=0, start=START) as server:
        if skew: server.post("skew", seconds=skew)
        s = AngelSession(config(server.url), login_of(TERMS, **over), server.api.desk.clock.now)
        with pytest.raises(AngelLoginError, match=words): s.open()
        with pytest.raises(AngelLoginError, match=words): s.open()   # told again, not sent again
        assert server.get("truth")["sessions"] == []
        s.close()


def test_over_verified_tls() -> None:
    with AngelServer(market(), TERMS, speed=20.0, start=START, tls=True) as server:
        cfg = config(server.url, ca_file=server.ca_file)
        clock = venue_clock(server.api.desk.clock.now(), 20.0).now
        b = AngelBroker(UNI, cfg, login_of(TERMS), clock)
        b.connect(clock())
        wait_until(lambda: b.stats.events > 0)   # the order socket, too
        st = b.state(clock())
        assert st.account.cash == 100_000 and b.up
        b.close(clock())
        stranger = AngelSession(config(server.url), login_of(TERMS))
        with pytest.raises(AngelError) as e: stranger.open()
        assert "SSLError" in str(e.value)
        stranger.close()
        assert len(server.get("truth")["sessions"]) == 1
