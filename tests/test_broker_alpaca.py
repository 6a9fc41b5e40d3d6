"""The Alpaca broker against the practice venue: the conformance suite, and what the fact sheet says goes wrong."""
from __future__ import annotations

import http.server
import json
import os
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
from broker_line import Proxy, wait_until  # noqa: E402
from realdata import realdata  # noqa: E402

pytest.importorskip("alpaca")

from scalp_nb.broker.alpaca import AlpacaBroker, AlpacaConfig, ask, make_client  # noqa: E402
from scalp_nb.broker.alpaca import _message as hear  # noqa: E402
from scalp_nb.broker.alpaca_models import bracket_body, oco_body, order_body, read_account, read_asset, read_order, read_position, state_of  # noqa: E402
from scalp_nb.broker.base import Broker, BrokerError, BrokerState  # noqa: E402
from scalp_nb.feed.depth import FLAG_HALT, depth_row  # noqa: E402
from scalp_nb.feed.instrument import Instrument, Universe  # noqa: E402
from scalp_nb.order.types import Intent, OrderState, OrderType, Purpose, Side, Tif, Update, UpdateKind  # noqa: E402
from scalp_nb.practice.alpaca import PracticeServer  # noqa: E402
from scalp_nb.practice.alpaca_orders import AlpacaTerms  # noqa: E402
from scalp_nb.practice.venue import make_tape, step_clock  # noqa: E402
from scalp_nb.trader.streaming import Auditor  # noqa: E402

D, MS, K = Decimal, 1_000_000, UpdateKind
UNI = Universe("pair", (Instrument("AAA", "US", currency="USD"), Instrument("BBB", "US", currency="USD")))
START = 1_795_100_400_000_000_000  # 2026-11-19 15:00 UTC, 10:00 in New York
TERMS = AlpacaTerms(rate_limit=100_000)


def config(port: int, **over: Any) -> AlpacaConfig:
    base = {"url": f"http://127.0.0.1:{port}", "per_minute": 10_000, "reserve": 10, "settle_s": 0.3, "read_timeout_s": 2.0, "first_wait_s": 0.02,
            "position_lag_s": 1.0, "attempts": 2}
    return AlpacaConfig(**{**base, **over})


class AlpacaDriver:
    "Steers the practice venue on a stepped clock, with a line between it and the broker."
    universe = UNI
    faults = frozenset({"reject", "lost_ack", "disconnect", "restart", "halt", "duplicate", "late"})
    cash = D(100_000)
    hold = False  # the line stays down over a settle

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
        self.late, self.copies = "late" in faults, 2 if "duplicate" in faults else 1
        if "duplicate" in faults: self.server.post("fault", fault="update_twice", times=0)
        if "late" in faults: self.server.post("fault", fault="update_late", times=0, args={"seconds": 0.002})
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
        heard = "lost_ack" in self.proxy.modes or self.broker.stats.events + self.base >= self.said * self.copies
        return not self.broker.busy and heard

    def settle(self) -> list[Update]:
        until = time.monotonic() + 10
        while not self.quiet() and time.monotonic() < until:
            if self.late and self.server is not None: step_clock(self.server.api.desk.clock, MS)   # what is late comes with time
            time.sleep(0.002)
        assert self.quiet(), "the broker did not come to rest"
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

    @pytest.mark.parametrize("faults", [("duplicate",), ("late",), ("duplicate", "late")], ids="+".join)
    def test_updates_twice_and_out_of_order(self, venue: AlpacaDriver, faults: tuple[str, ...]) -> None:
        "The suite waits for repetitions at the client; this broker drops them, and counts them."
        b, seen = self.start(venue, *faults)
        buy, sell = self.order(venue, b, Side.BUY, 50, "100.1"), self.order(venue, b, Side.SELL, 40, "99.9", sym=1)
        self.send(venue, b, seen, buy, sell)
        b.cancel(sell.id, venue.now)
        seen.add(venue.settle())
        assert (seen.filled(buy.id), seen.filled(sell.id)) == (50, 40)
        assert len([u for u in seen.log if u.kind is K.FILL]) == len(seen.fills) >= 4
        assert (venue.broker.stats.duplicates >= len(seen.fills)) is ("duplicate" in faults)
        assert venue.server is not None and {f["fault"] for f in venue.server.get("faults")} == {
            {"duplicate": "update_twice", "late": "update_late"}[f] for f in faults}
        self.agree(venue, b, seen)

    # ---- what the fact sheet says goes wrong
    def test_a_thousand_questions_are_a_few_requests_and_no_cancel_waits(self, venue: AlpacaDriver) -> None:
        "A trader that could not run for minutes asks for all that time at once: see `_look`."
        b, seen = self.start(venue)
        orders = [self.order(venue, b, Side.BUY, 1, "99.5", sym=k % 2) for k in range(10)]
        self.send(venue, b, seen, *orders)
        before = venue.broker.stats.requests
        for _ in range(200):
            for i in orders: b.query(i.id, venue.now)
        for i in orders: b.cancel(i.id, venue.now)
        wait_until(lambda: not venue.broker._lanes.busy)
        seen.add(venue.settle())
        assert all({K.STATUS, K.CANCELED} <= set(seen.kinds[i.id]) for i in orders)
        assert venue.broker.stats.requests - before <= 10 + 4 * 10   # ten cancels; a look-up or a few of each

    def test_look_ups_leave_the_reserve_to_cancels_and_exits(self, venue: AlpacaDriver) -> None:
        b, seen = self.start(venue)
        rest, held = self.order(venue, b, Side.BUY, 1, "99.5"), self.order(venue, b, Side.BUY, 10, "100.05", sym=1)
        self.send(venue, b, seen, rest, held)
        venue.broker._budget.per_minute, venue.broker._budget.reserve = venue.broker._budget.used + 20, 15
        for k in range(40): b.query(f"nobody-knows-{k}", venue.now)
        seen.add(venue.settle())
        assert {k[-1] for i, k in seen.kinds.items() if i.startswith("nobody")} == {K.NOT_FOUND, K.NO_ANSWER}
        b.cancel(rest.id, venue.now)
        out = replace(self.order(venue, b, Side.SELL, 10, "99.9", sym=1), purpose=Purpose.EXIT)
        self.send(venue, b, seen, out)
        assert K.CANCELED in seen.kinds[rest.id] and seen.filled(out.id) == 10

    def test_keys_that_expire_end_entries_and_exits_go_on_trying(self, venue: AlpacaDriver) -> None:
        b, seen = self.start(venue)
        self.send(venue, b, seen, self.order(venue, b, Side.BUY, 10, "100.05"))
        venue.broker.news()
        assert venue.server is not None
        venue.server.post("fault", fault="keys_expire", args={"seconds": 30.0})
        entry = self.order(venue, b, Side.BUY, 10, "100.05", sym=1)
        out = [replace(self.order(venue, b, Side.SELL, 10, "99.9"), purpose=Purpose.EXIT) for _ in range(2)]
        sent = venue.broker.stats.submits
        self.send(venue, b, seen, entry, out[0])
        assert {seen.last(i.id, K.REJECT).reason for i in (entry, out[0])} == {"keys"}
        assert venue.broker.stats.submits == sent + 1   # the exit was tried, the entry was not
        (down,) = self.line_news(venue)
        assert down.kind == "down" and "no longer accepts the API keys" in down.text and "exits are tried" in down.text
        with pytest.raises(BrokerError, match="were good before"): b.state(venue.now)
        venue.step(31 * 10**9)
        self.send(venue, b, seen, out[1])
        assert seen.filled(out[1].id) == 10 and self.line_news(venue)[-1].kind == "up"
        self.agree(venue, b, seen)

    def line_news(self, venue: AlpacaDriver) -> list[Any]:
        "What was said of the line; jobs under way beside the orders may have something to say of their own."
        assert venue.broker is not None
        return [n for n in venue.broker.news() if n.kind in ("up", "down")]

    def test_a_clock_that_drifts_away_in_mid_session_ends_entries(self, venue: AlpacaDriver) -> None:
        b, seen = self.start(venue)
        venue.broker.news()
        assert venue.server is not None
        venue.server.post("fault", fault="clock_skew", args={"seconds": 30.0, "skew": 3.0})
        entries = [self.order(venue, b, Side.BUY, 10, "100.05", sym=int(k > 0)) for k in range(3)]
        self.send(venue, b, seen, entries[0], entries[1])
        assert {seen.last(i.id, K.REJECT).reason for i in entries[:2]} == {"clock_skew"}
        (down,) = venue.broker.news()
        assert down.kind == "down" and "+3.0 s from ours" in down.text
        out = replace(self.order(venue, b, Side.SELL, 5, "99.9"), purpose=Purpose.EXIT)
        self.send(venue, b, seen, out)
        assert seen.filled(out.id) == 5
        venue.step(31 * 10**9)
        self.send(venue, b, seen, entries[2])
        assert seen.filled(entries[2].id) == 10 and [n.kind for n in venue.broker.news()] == ["up"]

    def test_an_execution_heard_twice_is_told_once(self, venue: AlpacaDriver) -> None:
        b, seen = self.start(venue)
        heard: list[bytes] = []
        assert venue.server is not None
        venue.server.api.orders.tell.append(lambda data: heard.append(json.dumps({"stream": "trade_updates", "data": data}).encode()))
        i = self.order(venue, b, Side.BUY, 10, "100.05")
        self.send(venue, b, seen, i)
        for raw in [*heard, *reversed(heard), b"{broken", b'{"stream": "trade_updates", "data": {"event": "fill"}}']: hear(b, raw)
        seen.add(venue.settle())
        assert seen.kinds[i.id].count(K.FILL) == 1 and seen.kinds[i.id].count(K.ACK) == 1
        assert (venue.broker.stats.duplicates, venue.broker.stats.unreadable) == (2, 2)
        self.agree(venue, b, seen)

    def test_executions_while_the_stream_was_down_are_found(self, venue: AlpacaDriver) -> None:
        b, seen = self.start(venue)
        i = self.order(venue, b, Side.BUY, 10, "99.5")
        self.send(venue, b, seen, i)
        venue.proxy.modes.add("down")
        venue.proxy.cut()
        wait_until(lambda: not venue.broker.up)
        entry = self.order(venue, b, Side.BUY, 1, "99.5", sym=1)
        b.submit(entry, venue.now)
        venue.base, venue.hold = venue.base + 1_000_000, True  # what is said now is not heard, and the line stays down
        seen.add(venue.row(0, ((99.3, 9.0),), ((99.4, 100.0),), 99.4, traded=50))
        assert seen.kinds[entry.id] == [K.REJECT] and seen.last(entry.id, K.REJECT).reason == "updates_down"
        venue.hold = False
        venue.proxy.modes.discard("down")
        wait_until(lambda: venue.broker.up)
        wait_until(lambda: i.id in seen.add(venue.settle()).kinds and seen.filled(i.id) == 10)
        assert venue.broker.stats.recovered == 1 and venue.broker.stats.reconnects == 1
        assert {"down", "up"} <= {n.kind for n in venue.broker.news()}
        self.agree(venue, b, seen)

    @pytest.mark.parametrize("terms, side, qty, limit, reason", [
        ({"untradable": frozenset({"AAA"})}, 1, 10, "100", "not_tradable"), ({"not_shortable": frozenset({"AAA"})}, -1, 10, "100", "not_shortable"),
        ({}, 1, 1_000_000, "100", "buying_power"), ({}, 1, 10, "100.005", "sub_penny")])
    def test_refusals_have_their_own_reasons(self, venue: AlpacaDriver, terms: Any, side: int, qty: int, limit: str, reason: str) -> None:
        venue.make(**terms)
        seen = Seen()
        for s in range(2): seen.add(venue.row(s, BIDS, ASKS, 100.0))
        self.sent = {}
        i = self.order(venue, venue.broker, Side(side), qty, limit)
        self.send(venue, venue.broker, seen, i)
        assert seen.kinds[i.id] == [K.REJECT] and seen.last(i.id, K.REJECT).reason == reason and seen.last(i.id, K.REJECT).text
        assert venue.server is not None and not [t for t in venue.server.api.orders.tickets.values() if t.open]

    def test_a_wash_trade_is_named(self, venue: AlpacaDriver) -> None:
        b, seen = self.start(venue)
        self.send(venue, b, seen, self.order(venue, b, Side.BUY, 10, "99.9"))
        i = self.order(venue, b, Side.SELL, 10, "99.9")
        self.send(venue, b, seen, i)
        assert seen.last(i.id, K.REJECT).reason == "wash_trade"

    def test_entries_wait_for_the_market_and_exits_do_not(self, venue: AlpacaDriver) -> None:
        b, seen = self.start(venue)
        venue.step(7 * 3600 * 10**9)  # 17:00 in New York
        i = self.order(venue, b, Side.BUY, 10, "99.5")
        out = replace(self.order(venue, b, Side.BUY, 10, "99.4"), purpose=Purpose.EXIT)
        self.send(venue, b, seen, i, out)
        assert seen.last(i.id, K.REJECT).reason == "market_closed" and K.REJECT not in seen.kinds.get(out.id, [])
        assert venue.broker.stats.submits == 1

    def test_ten_cancels_leave_at_once(self, venue: AlpacaDriver) -> None:
        b, seen = self.start(venue)
        orders = [self.order(venue, b, Side.BUY, 1, "99.5", sym=k % 2) for k in range(10)]
        self.send(venue, b, seen, *orders)
        assert venue.server is not None
        venue.server.post("fault", fault="http_slow", match="DELETE", args={"seconds": 1.0})
        for i in orders: b.cancel(i.id, venue.now)
        assert b.poll(venue.now) == [] and venue.broker._lanes.busy   # nobody waited for the slow answer
        wait_until(lambda: venue.quiet())
        seen.add(venue.settle())
        assert all(seen.kinds[i.id] == [K.ACK, K.CANCELED] for i in orders)

    def test_pictures_beside_the_trading_thread(self, venue: AlpacaDriver) -> None:
        b, _ = self.start(venue)
        auditor = Auditor(b, 3600 * 10**9, lambda: 0)
        assert auditor.turn(venue.now) is None   # begun, not waited for

        def taken() -> bool:
            got = auditor.turn(venue.now)
            return isinstance(got, BrokerState) and got.account.cash == venue.cash
        wait_until(taken)
        auditor.close()

    def test_wrong_keys(self, venue: AlpacaDriver) -> None:
        self.start(venue)
        bad = AlpacaBroker(UNI, config(venue.proxy.port), "PKWRONG", "HIDDEN")
        with pytest.raises(BrokerError, match="keys were refused") as e: bad.connect(venue.now)
        assert "PKWRONG" not in str(e.value) and "HIDDEN" not in str(e.value)
        bad.close(venue.now)


@pytest.mark.parametrize("status, body", [(504, b"<html>"), (500, b""), (429, b"{}"), (200, b"<html>"), (200, b"")])
def test_an_order_is_sent_once_whatever_comes_back(status: int, body: bytes) -> None:
    "alpaca-py itself sends four orders on four 504s."
    posts: list[str] = []
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posts.append(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        def log_message(self, *args: Any) -> None: return None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        a = ask(make_client(config(server.server_port), "PK", "S"), "post", "/orders", {"symbol": "AAA"})
        server.shutdown()
    assert posts == ["/v2/orders"] and not (a.ok and isinstance(a.body, dict)) and a.refused == (status == 429)


def test_a_mute_server_is_left_after_the_time_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as s:
        began = time.monotonic()
        a = ask(make_client(config(s.getsockname()[1], read_timeout_s=0.3), "PK", "S"), "get", "/clock")
        assert a.open and a.sent and time.monotonic() - began < 3


def test_payloads_of_alpacas_own_tests() -> None:
    seen: dict[str, int] = {}
    for name in ("order", "account", "position", "asset"):
        path = realdata(f"fixtures/alpaca/alpaca-py__trading__trading_client__test_{name}_routes.json")
        for case in json.loads(path.read_text(encoding="utf-8")):
            for d in case["payload"] if isinstance(case["payload"], list) else [case["payload"]]:
                if "client_order_id" in d: assert state_of(read_order(d)) is not OrderState.UNKNOWN and read_order(d).symbol
                elif "buying_power" in d: assert read_account(d, 1).equity > 0
                elif "avg_entry_price" in d: assert read_position(d)[1] != 0
                elif "tradable" in d: assert read_asset(d).tradable in (True, False)
                else: continue
                seen[name] = seen.get(name, 0) + 1
    assert seen.keys() == {"order", "account", "position", "asset"}


def test_bodies_are_what_the_sdk_sends() -> None:
    from alpaca.trading import requests as sdk
    i = Intent("id1", 1, 1, "a", "s", "AAPL", 0, Side.BUY, Purpose.ENTRY, D(10), OrderType.STOP_LIMIT, D("101.1"), D("100.5"), Tif.DAY, D(100))
    def same(ours: dict[str, Any], theirs: Any) -> None:
        def flat(x: Any) -> Any:
            if isinstance(x, dict): return {k: flat(v) for k, v in x.items() if v is not None}
            return float(x) if isinstance(x, (int, float)) or (isinstance(x, str) and x.replace(".", "").isdigit()) else str(getattr(x, "value", x))
        assert flat(ours) == flat(theirs.to_request_fields())
    base = {"symbol": "AAPL", "qty": 10, "side": "buy", "time_in_force": "day", "client_order_id": "id1"}
    same(order_body(i), sdk.StopLimitOrderRequest(**base, limit_price=101.1, stop_price=100.5))
    m = replace(i, type=OrderType.MARKET, limit=None, stop=None)
    same(order_body(m), sdk.MarketOrderRequest(**base))
    same(bracket_body(m, D(110), D(95)), sdk.MarketOrderRequest(**base, order_class="bracket", take_profit={"limit_price": 110},
                                                                 stop_loss={"stop_price": 95}))
    sell = replace(i, side=Side.SELL, type=OrderType.LIMIT, limit=D(110), stop=None)
    legs: dict[str, Any] = {"take_profit": {"limit_price": 110}, "stop_loss": {"stop_price": 95}}
    same(oco_body(sell, D(95)), sdk.LimitOrderRequest(**{**base, "side": "sell"}, limit_price=110, order_class="oco", **legs))


def test_the_real_paper_account() -> None:
    "Opt-in: reads only, sends nothing."
    key, secret = os.environ.get("APCA_API_KEY_ID", ""), os.environ.get("APCA_API_SECRET_KEY", "")
    if not key or not secret: pytest.skip("APCA_API_KEY_ID and APCA_API_SECRET_KEY are not set: the real paper account is not asked")
    if not key.startswith("PK"): pytest.skip("APCA_API_KEY_ID is not a paper key")
    b = AlpacaBroker(Universe("smoke", (Instrument("SPY", "US", currency="USD"),)), AlpacaConfig(), key, secret)
    try:
        b.connect(time.time_ns())
        st = b.state(time.time_ns())
        assert b.up and st.account.equity > 0 and "is_open" in b.clock()
    finally: b.close(time.time_ns())
