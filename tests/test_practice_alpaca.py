"""The Alpaca practice venue, met by Alpaca's own SDK, by Alpaca's published schemas, and by everything that can go wrong."""

import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from practice_alpaca import running, schemas, trading_client, until
from realdata import realdata

pytest.importorskip("alpaca")
warnings.filterwarnings("ignore", category=DeprecationWarning)

from alpaca.common.exceptions import APIError  # noqa: E402
from alpaca.trading.enums import OrderClass, OrderSide, TimeInForce  # noqa: E402
from alpaca.trading.requests import (  # noqa: E402
    ClosePositionRequest,
    GetCalendarRequest,
    GetOrdersRequest,
    LimitOrderRequest,
    MarketOrderRequest,
    ReplaceOrderRequest,
    StopLimitOrderRequest,
    StopLossRequest,
    StopOrderRequest,
    TakeProfitRequest,
    TrailingStopOrderRequest,
)

from scalp_nb.feed.recorder import write_parquet  # noqa: E402
from scalp_nb.practice.alpaca import PracticeServer  # noqa: E402
from scalp_nb.practice.alpaca_orders import AlpacaTerms  # noqa: E402
from scalp_nb.practice.faults import ALPACA_KINDS, ALPACA_MORE, random_script, read_script  # noqa: E402
from scalp_nb.practice.venue import make_tape, walk_tape  # noqa: E402

TAPE = walk_tape(seconds=900)
BUY, SELL, DAY = OrderSide.BUY, OrderSide.SELL, TimeInForce.DAY


def serve(*script: dict[str, Any], speed: float = 0.0, state: Path | None = None, seed: int = 0, **terms: Any) -> PracticeServer:
    return PracticeServer(TAPE, AlpacaTerms(seed=seed, **terms), speed, state=state, script=read_script(script), seed=seed)


@pytest.fixture
def server() -> Iterator[PracticeServer]:
    with serve() as s:
        s.step(3)
        yield s


def keys(server: PracticeServer) -> dict[str, str]:
    return {"APCA-API-KEY-ID": server.terms.key, "APCA-API-SECRET-KEY": server.terms.secret}


def market(side: OrderSide = BUY, qty: float = 10, symbol: str = "AAPL", **kw: Any) -> MarketOrderRequest:
    return MarketOrderRequest(symbol=symbol, qty=qty, side=side, time_in_force=DAY, **kw)


def limit(px: float, side: OrderSide = BUY, qty: float = 10, **kw: Any) -> LimitOrderRequest:
    return LimitOrderRequest(symbol="AAPL", qty=qty, side=side, time_in_force=DAY, limit_price=px, **kw)


def refused(what: Any) -> APIError:
    with pytest.raises(APIError) as e: what()
    return e.value


# ---- the SDK's trading client


def test_the_sdk_reads_account_clock_calendar_and_assets(server: PracticeServer) -> None:
    c = trading_client(server)
    assert (c.get_account().status.value, c.get_account().cash, c.get_account().multiplier) == ("ACTIVE", "100000", "4")
    assert c.get_clock().is_open and c.get_clock().timestamp.isoformat().startswith("2026-11-19T09:30:03")
    days = c.get_calendar(GetCalendarRequest(start="2026-11-25", end="2026-11-28"))
    assert [(str(d.date), d.close.hour) for d in days] == [("2026-11-25", 16), ("2026-11-27", 13)]
    assert [a.symbol for a in c.get_all_assets()] == ["AAPL", "MSFT"] and c.get_asset("MSFT").tradable
    assert refused(lambda: c.get_asset("NOPE")).status_code == 404
    assert c.get_account_configurations().fractional_trading


def test_an_orders_whole_life_through_the_sdk(server: PracticeServer) -> None:
    c = trading_client(server)
    sent = c.submit_order(market(client_order_id="one"))
    assert sent.status.value == "pending_new" and c.get_order_by_client_id("one").status.value == "filled"
    rest = c.submit_order(limit(90))
    assert [o.id for o in c.get_orders()] == [rest.id]
    new = c.replace_order_by_id(rest.id, ReplaceOrderRequest(limit_price=91, qty=5))
    assert (new.qty, new.limit_price, c.get_order_by_id(rest.id).replaced_by) == ("5", "91", new.id)
    c.cancel_order_by_id(new.id)
    error = refused(lambda: c.cancel_order_by_id(new.id))
    assert (error.status_code, error.code, error.message) == (422, 42210000, 'order is already in "canceled" state')
    assert len(c.get_orders(GetOrdersRequest(status="all"))) == 3
    position = c.get_open_position("AAPL")
    paid = Decimal(c.get_order_by_client_id("one").filled_avg_price)
    assert (position.qty, position.side.value, Decimal(position.avg_entry_price)) == ("10", "long", paid)
    c.close_position("AAPL", ClosePositionRequest(qty="4"))
    assert c.get_open_position("AAPL").qty == "6"
    c.submit_order(limit(120, SELL, 6))
    assert [r.status for r in c.close_all_positions(cancel_orders=True)] == [200]
    assert c.get_all_positions() == [] and c.get_orders() == []
    fills = c.get("/account/activities/FILL", {"page_size": 2})
    older = c.get("/account/activities/FILL", {"page_size": 2, "page_token": fills[-1]["id"]})
    assert [f["side"] for f in fills + older] == ["sell", "sell", "buy"]


def test_every_order_type_and_class_through_the_sdk(server: PracticeServer) -> None:
    c = trading_client(server)
    exits = {"take_profit": TakeProfitRequest(limit_price=120), "stop_loss": StopLossRequest(stop_price=80)}
    b = c.submit_order(market(order_class=OrderClass.BRACKET, **exits))
    assert [leg.status.value for leg in b.legs] == ["held", "held"]
    assert [leg.status.value for leg in c.get_order_by_id(b.id).legs] == ["new", "held"]
    assert [o.type.value for o in c.get_orders()] == ["limit"]   # the held stop is not listed, unless inside its entry
    assert [[leg.status.value for leg in o.legs] for o in c.get_orders(GetOrdersRequest(status="open", nested=True))] == [["new", "held"]]
    c.cancel_orders()
    o = c.submit_order(limit(120, SELL, order_class=OrderClass.OCO, **exits))
    assert [leg.type.value for leg in o.legs] == ["stop"]
    c.cancel_order_by_id(o.id)
    for request in (StopOrderRequest(symbol="AAPL", qty=10, side=SELL, time_in_force=DAY, stop_price=80),
                    StopLimitOrderRequest(symbol="AAPL", qty=10, side=SELL, time_in_force=TimeInForce.GTC, stop_price=80, limit_price=79.5),
                    TrailingStopOrderRequest(symbol="AAPL", qty=10, side=SELL, time_in_force=DAY, trail_percent=10)):
        x = c.submit_order(request)
        assert c.get_order_by_id(x.id).status.value == "new"
        c.cancel_order_by_id(x.id)
    oto = c.submit_order(market(symbol="MSFT", order_class=OrderClass.OTO, stop_loss=StopLossRequest(stop_price=80)))
    assert [leg.status.value for leg in c.get_order_by_id(oto.id).legs] == ["new"]


REFUSALS = [
    (market(client_order_id="used"), 422, 40010001, "client_order_id must be unique"),
    (limit(100.001), 422, 42210000, "sub-penny"),
    (market(symbol="NOPE"), 422, 42210000, "not found"),
    (market(symbol="MSFT"), 422, 42210000, "not tradable"),
    (market(qty=1_000_000), 403, 40310000, "insufficient buying power"),
    (market(SELL, 11), 403, 40310000, "insufficient qty available"),
    (market(SELL, 3, "SPY"), 422, 42210000, "cannot be sold short"),
    (LimitOrderRequest(symbol="AAPL", qty=1, side=BUY, time_in_force=TimeInForce.IOC, limit_price=90), 422, 42210000, "not enabled"),
]


@pytest.fixture(scope="module")
def strict() -> Iterator[PracticeServer]:
    with PracticeServer(walk_tape(("AAPL", "MSFT", "SPY"), 60), AlpacaTerms(untradable={"MSFT"}, not_shortable={"SPY"}), 0.0) as s:
        s.step(3)
        trading_client(s).submit_order(market(client_order_id="used"))
        yield s


@pytest.mark.parametrize("request_, status, code, words", REFUSALS, ids=[r[3] for r in REFUSALS])
def test_each_refusal_has_its_own_words_and_leaves_nothing_behind(strict: PracticeServer, request_: Any, status: int, code: int, words: str) -> None:
    before = strict.get("truth")
    error = refused(lambda: trading_client(strict).submit_order(request_))
    assert (error.status_code, error.code) == (status, code) and words in error.message
    assert strict.get("truth") == before


def test_a_wash_trade_names_the_order_in_the_way(server: PracticeServer) -> None:
    c = trading_client(server)
    c.submit_order(market())
    stop = c.submit_order(StopOrderRequest(symbol="AAPL", qty=10, side=SELL, time_in_force=DAY, stop_price=80))
    error = refused(lambda: c.submit_order(market()))
    assert error.status_code == 403 and str(stop.id) in str(error) and "opposite side stop order exists" in str(error)


@pytest.mark.parametrize("keys", [{"key": "AKLIVE"}, {"secret": "wrong"}])
def test_wrong_keys_and_live_keys_are_not_authorized(server: PracticeServer, keys: dict[str, str]) -> None:
    error = refused(lambda: trading_client(server, **keys).submit_order(market()))
    assert (error.status_code, error.code) == (401, 40110000) and server.get("truth")["orders"] == []


def test_after_the_close_an_order_waits_and_the_next_open_fills_it() -> None:
    next_day = TAPE.rows.copy()
    next_day["ts"] += 24 * 3600 * 10**9
    with PracticeServer(make_tape(np.concatenate([TAPE.rows, next_day]), TAPE.universe, TAPE.bars), speed=0.0) as s:
        c = trading_client(s)
        s.step(8 * 3600)
        assert not c.get_clock().is_open and str(c.get_clock().next_open.date()) == "2026-11-20"
        waiting = c.submit_order(market())
        assert waiting.status.value == "accepted" and c.get_all_positions() == []
        s.step(15 * 3600)
        assert c.get_order_by_id(waiting.id).status.value == "accepted"
        s.step(3600 + 1)
        assert c.get_order_by_id(waiting.id).status.value == "filled"
        assert str(c.get_order_by_id(waiting.id).filled_at) == "2026-11-20 14:30:00+00:00"


def test_the_rate_limit_has_headers_and_ends_with_the_minute() -> None:
    with serve(rate_limit=3) as s:
        ask = {"url": s.url + "/v2/clock", "headers": keys(s)}
        answers = [httpx.get(**ask) for _ in range(4)]
        assert [(r.status_code, r.headers["x-ratelimit-remaining"]) for r in answers] == [(200, "2"), (200, "1"), (200, "0"), (429, "0")]
        s.step(61)
        assert httpx.get(**ask).status_code == 200


# ---- the SDK's streams


def test_trade_updates_reach_the_sdk_in_order(server: PracticeServer) -> None:
    from alpaca.trading.stream import TradingStream
    got: list[Any] = []
    async def hear(u: Any) -> None: got.append(u)
    stream = TradingStream(server.terms.key, server.terms.secret, url_override=server.stream_url)
    stream.subscribe_trade_updates(hear)
    with running(stream):
        until(lambda: server.get("truth")["lines"][0]["listening"])
        c = trading_client(server)
        c.submit_order(market())
        c.cancel_order_by_id(c.submit_order(limit(90)).id)
        until(lambda: len(got) == 4)
    assert [u.event for u in got] == ["new", "fill", "new", "canceled"]
    assert (got[1].qty, got[1].position_qty, got[1].order.filled_qty) == (10.0, 10.0, "10") and len({u.execution_id for u in got}) == 4


def test_market_data_reach_the_sdk(server: PracticeServer) -> None:
    from alpaca.data.live import StockDataStream
    got: dict[str, list[Any]] = {k: [] for k in ("quotes", "trades", "bars", "statuses")}
    stream = StockDataStream(server.terms.key, server.terms.secret, url_override=server.data_url)
    for kind, subscribe in (("quotes", stream.subscribe_quotes), ("trades", stream.subscribe_trades), ("bars", stream.subscribe_bars),
                            ("statuses", stream.subscribe_trading_statuses)):
        async def hear(x: Any, kind: str = kind) -> None: got[kind].append(x)
        subscribe(hear, "AAPL")
    with running(stream):
        until(lambda: [e for e in server.get("events") if e["kind"] == "subscribe"])
        server.step(58)
        server.post("fault", fault="halt", args={"symbol": "AAPL", "seconds": 5.0})
        server.step(60)
        until(lambda: [len(got[k]) for k in ("bars", "statuses", "trades")] == [2, 2, 114])   # of 118 seconds four were halted
    assert [s.status_code for s in got["statuses"]] == ["H", "T"]
    assert (got["bars"][0].symbol, got["bars"][0].volume, got["quotes"][0].ask_size) == ("AAPL", 600.0, 500.0)
    assert got["trades"][-1].timestamp.isoformat() == "2026-11-19T14:32:01+00:00"


def test_a_second_data_connection_is_refused_and_a_torn_one_blocks_its_place(server: PracticeServer) -> None:
    from websockets.sync.client import connect
    def dial() -> tuple[Any, Any]:
        import msgpack
        ws = connect(server.data_url, additional_headers={"Content-Type": "application/msgpack"})
        assert msgpack.unpackb(ws.recv())[0]["msg"] == "connected"
        ws.send(msgpack.packb({"action": "auth", "key": server.terms.key, "secret": server.terms.secret}))
        return ws, msgpack.unpackb(ws.recv())[0]
    first, said = dial()
    assert said["msg"] == "authenticated"
    second, said = dial()
    assert (said["code"], said["msg"]) == (406, "connection limit exceeded")
    first.socket.shutdown(2)   # torn: no farewell
    until(lambda: not [x for x in server.get("truth")["lines"] if x["authed"]])
    assert dial()[1]["code"] == 406
    server.step(91)
    third, said = dial()
    assert said["msg"] == "authenticated"
    third.close()
    until(lambda: not server.get("truth")["lines"])
    assert dial()[1]["msg"] == "authenticated"   # a farewell frees the place at once


# ---- Alpaca's published schemas


def _nullable(node: Any) -> None:
    "OpenAPI 3.0 says `nullable` where JSON Schema says null."
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        _nullable(child)
    if isinstance(node, dict) and node.get("nullable") is True and isinstance(node.get("type"), str): node["type"] = [node["type"], "null"]


def _checker(spec: dict[str, Any]) -> Any:
    "A validator of one schema of the file, widened at the two places where Alpaca's own payloads break it."
    from jsonschema import Draft202012Validator
    parts = spec["components"]["schemas"]
    if spec["openapi"].startswith("3.0"): _nullable(parts)
    for name in ("Order", "OrderLeg"):
        if name in parts: parts[name]["properties"]["legs"] = {}   # the file says object of a leg, Alpaca sends null
    if "OrderClass" in parts: assert "" in parts["OrderClass"]["enum"]
    def check(name: str, payload: Any, many: bool = False) -> None:
        schema = {"$ref": f"#/components/schemas/{name}", "components": spec["components"]}
        for one in payload if many else [payload]:
            errors = [f"{'/'.join(map(str, e.absolute_path))}: {e.message}" for e in Draft202012Validator(schema).iter_errors(one)]
            assert errors == [], errors
        assert not many or payload
    return check


def test_trading_replies_satisfy_the_published_schemas(server: PracticeServer) -> None:
    check, c = _checker(schemas("trading")), trading_client(server, raw=True)
    c.submit_order(market())
    c.submit_order(market(symbol="MSFT", order_class=OrderClass.BRACKET, take_profit=TakeProfitRequest(limit_price=120),
                          stop_loss=StopLossRequest(stop_price=80)))
    c.submit_order(StopOrderRequest(symbol="AAPL", qty=10, side=SELL, time_in_force=DAY, stop_price=80))
    check("Account", c.get_account())
    check("AccountConfigurations", c.get("/account/configurations"))
    check("legacy_clock", c.get_clock())
    check("legacy_calendar_day", c.get_calendar(), many=True)
    check("Assets", c.get_all_assets(), many=True)
    orders = c.get_orders(GetOrdersRequest(status="all", nested=True))
    check("Order", orders, many=True)
    check("OrderLeg", [leg for o in orders for leg in o["legs"] or ()], many=True)
    check("Position", c.get_all_positions(), many=True)
    check("TradingActivities", c.get("/account/activities/FILL"), many=True)
    check("PositionClosedReponse", c.close_all_positions(cancel_orders=True), many=True)
    r = httpx.post(server.url + "/v2/orders", json={}, headers=keys(server))
    check("Error", r.json())


def test_data_replies_satisfy_the_published_schemas(server: PracticeServer) -> None:
    check = _checker(schemas("data"))
    server.step(180)
    def get(path: str, **query: Any) -> Any:
        r = httpx.get(server.url + "/v2/stocks" + path, params=query, headers=keys(server))
        assert r.status_code == 200
        return r.json()
    for kind in ("bars", "quotes", "trades"):
        check(f"stock_{kind}_resp", get(f"/{kind}", symbols="AAPL,MSFT", limit=10, timeframe="1Min"))
        check(f"stock_{kind}_resp_single", get(f"/AAPL/{kind}", timeframe="1Min"))
        check(f"stock_latest_{kind}_resp", get(f"/{kind}/latest", symbols="AAPL"))
        check(f"stock_latest_{kind}_resp_single", get(f"/AAPL/{kind}/latest"))


def test_frames_have_the_fields_of_alpacas_own(server: PracticeServer) -> None:
    import orjson

    from scalp_nb.practice.alpaca_orders import submit
    frames = [f["payload"] for f in orjson.loads(realdata("fixtures/alpaca/alpaca-docs__frames.json").read_bytes()) if isinstance(f["payload"], dict)]
    theirs = next(f["data"] for f in frames if f.get("stream") == "trade_updates")
    with serve() as s:
        said: list[Any] = []
        s.api.orders.tell.append(said.append)
        s.step(3)
        submit(s.api.orders, {"symbol": "AAPL", "qty": 1, "side": "buy", "type": "market", "time_in_force": "day"})
    assert set(theirs) <= set(said[-1])
    assert set(theirs["order"]) - set(said[-1]["order"]) <= {"cancel_requested_at"}   # in the page of 2022, in no schema


# ---- faults, as the SDK meets them


def test_an_answer_that_never_comes_leaves_a_live_order() -> None:
    from requests.exceptions import ConnectionError as Cut
    with serve({"fault": "ack_lost"}, {"fault": "http_cut", "match": "GET /v2/orders", "nth": 1}) as s:
        s.step(3)
        c = trading_client(s)
        with pytest.raises(Cut): c.submit_order(market(client_order_id="x"))
        with pytest.raises(Cut): c.get_order_by_client_id("x")
        assert c.get_order_by_client_id("x").status.value == "filled"
        assert [f["fault"] for f in s.get("faults")] == ["ack_lost", "http_cut"]


def test_the_sdks_own_retry_doubles_an_order_without_an_id() -> None:
    with serve({"fault": "gateway_504", "times": 0, "match": "AAPL"}, {"fault": "gateway_504", "match": "MSFT"}) as s:
        s.step(3)
        c = trading_client(s)
        with pytest.raises(APIError): c.submit_order(market(qty=1))
        assert len(s.get("truth")["orders"]) == 4    # one and its three repetitions: what the fact sheet measured
        error = refused(lambda: c.submit_order(market(symbol="MSFT", qty=1, client_order_id="y")))
        assert (error.status_code, error.code) == (422, 40010001) and len(s.get("truth")["orders"]) == 5


def test_html_and_429_look_as_they_do_from_a_gateway() -> None:
    with serve({"fault": "http_html", "nth": 1}, {"fault": "http_429", "nth": 2}, {"fault": "http_429", "nth": 3}) as s:
        c = trading_client(s)
        error = refused(c.get_clock)
        assert error.status_code == 502
        with pytest.raises(ValueError): error.code   # noqa: B018 - the SDK parses HTML as JSON
        assert c.get_clock() and len(s.get("faults")) == 3   # the SDK repeats a 429 by itself


def test_an_order_accepted_after_the_clients_time_out() -> None:
    with serve({"fault": "accept_late", "args": {"seconds": 0.6}}) as s:
        s.step(3)
        ask = {"url": s.url + "/v2/orders", "headers": keys(s),
               "json": {"symbol": "AAPL", "qty": "1", "side": "buy", "type": "market", "time_in_force": "day", "client_order_id": "late"}}
        with pytest.raises(httpx.ReadTimeout): httpx.post(**ask, timeout=0.2)
        assert s.get("truth")["orders"] == []
        assert until(lambda: s.get("truth")["orders"])[0]["client_order_id"] == "late"


def test_the_sdk_survives_what_happens_to_its_streams() -> None:
    from alpaca.data.live import StockDataStream
    with serve({"fault": "data_malformed", "nth": 4}, {"fault": "data_disconnect", "nth": 6}, zombie_s=0) as s:
        got: list[Any] = []
        async def hear(q: Any) -> None: got.append(q)
        stream = StockDataStream(s.terms.key, s.terms.secret, url_override=s.data_url)
        stream._reconnect_min_backoff = 0.05
        stream.subscribe_quotes(hear, "AAPL")
        def subscribed(n: int) -> bool: return len([e for e in s.get("events") if e["kind"] == "subscribe"]) >= n
        with running(stream):
            until(lambda: subscribed(1))
            for _ in range(3):   # frames 4, 5 and 6: one is damaged, one arrives, one tears the line
                s.step(10)
                until(lambda: not s.api.hub.lines or not any(x.out for x in s.api.hub.lines))
            until(lambda: subscribed(2))
            s.step(10)
            until(lambda: len(got) > 8)
        assert [f["fault"] for f in s.get("faults")] == ["data_malformed", "data_disconnect"]


def test_a_mute_socket_stays_open_and_a_new_one_speaks() -> None:
    import orjson
    from websockets.sync.client import connect
    def dial(s: PracticeServer) -> Any:
        ws = connect(s.stream_url)
        for m in ({"action": "authenticate", "data": {"key_id": s.terms.key, "secret_key": s.terms.secret}},
                  {"action": "listen", "data": {"streams": ["trade_updates"]}}):
            ws.send(orjson.dumps(m))
            assert isinstance(ws.recv(), bytes)
        return ws
    with serve() as s:
        s.step(3)
        old = dial(s)
        s.post("fault", fault="updates_mute")
        new, c = dial(s), trading_client(s)
        c.submit_order(market())
        assert [orjson.loads(new.recv(timeout=5))["data"]["event"] for _ in range(2)] == ["new", "fill"]
        with pytest.raises(TimeoutError): old.recv(timeout=0.2)
        old.ping().wait(2)
        s.post("fault", fault="updates_down", args={"seconds": 30.0})
        with pytest.raises(Exception, match="503"): dial(s)
        assert c.get_clock().is_open
        s.step(31)
        dial(s).close()


def test_orders_endpoints_that_lag_behind() -> None:
    """An order taken a moment ago is unknown there, its execution is not; a cancel reaches it all the same."""
    with serve({"fault": "orders_lag", "at": 5.0, "args": {"seconds": 60.0, "lag": 5.0}}) as s:
        s.step(3)
        c = trading_client(s)
        old = c.submit_order(limit(50, client_order_id="old"))
        s.step(12)
        new, rest = c.submit_order(market(client_order_id="new")), c.submit_order(limit(51, client_order_id="rest"))
        assert refused(lambda: c.get_order_by_client_id("new")).status_code == refused(lambda: c.get_order_by_id(new.id)).status_code == 404
        assert [o.id for o in c.get_orders()] == [old.id]
        assert [f["order_id"] for f in c.get("/account/activities/FILL")] == [str(new.id)]
        c.cancel_order_by_id(rest.id)
        s.step(4.5)
        assert refused(lambda: c.get_order_by_client_id("rest")).status_code == 404
        s.step(1)
        assert c.get_order_by_client_id("new").status == "filled" and c.get_order_by_client_id("rest").status == "canceled"
        c.cancel_order_by_id(old.id)
        assert c.get_order_by_id(old.id).status == "new"      # not there yet
        s.step(60)
        assert c.get_order_by_id(old.id).status == "canceled" and c.get_orders() == []


def test_keys_that_expire_are_refused_everywhere_and_open_streams_stay() -> None:
    from websockets.sync.client import connect
    with serve() as s:
        s.step(3)
        c, heard = trading_client(s), list[Any]()
        from alpaca.trading.stream import TradingStream
        stream = TradingStream(s.terms.key, s.terms.secret, url_override=s.stream_url)
        async def hear(x: Any) -> None: heard.append(x)
        stream.subscribe_trade_updates(hear)
        with running(stream):
            until(lambda: [x for x in s.get("truth")["lines"] if x["listening"]])
            c.submit_order(limit(50, client_order_id="rest"))
            s.post("fault", fault="keys_expire", args={"seconds": 30.0})
            assert refused(lambda: c.get_account()).status_code == refused(lambda: c.submit_order(market())).status_code == 401
            with connect(s.stream_url) as ws:
                ws.send(f'{{"action": "auth", "key": "{s.terms.key}", "secret": "{s.terms.secret}"}}')
                assert b"unauthorized" in ws.recv(timeout=5)
            s.step(31)
            c.cancel_orders()
            until(lambda: [x.event for x in heard] == ["new", "canceled"])
        assert len(s.get("truth")["orders"]) == 1


def test_late_corrected_and_cancelled_trades_reach_the_sdk_and_change_their_bar() -> None:
    from alpaca.data.live import StockDataStream
    kinds = ("late", "corrected", "canceled")
    with serve(*({"fault": f"print_{how}", "nth": 5 + k, "match": "AAPL", "args": {"seconds": 70.0}} for k, how in enumerate(kinds))) as s:
        got: dict[str, list[Any]] = {k: [] for k in ("bars", "again", "fixed")}
        stream = StockDataStream(s.terms.key, s.terms.secret, url_override=s.data_url)
        async def bars(x: Any) -> None: got["bars"].append(x)
        async def again(x: Any) -> None: got["again"].append(x)
        async def fixed(x: Any) -> None: got["fixed"].append(x)
        stream.subscribe_bars(bars, "AAPL")
        stream.subscribe_updated_bars(again, "AAPL")
        stream.subscribe_trades(fixed, "AAPL")
        stream.register_trade_corrections(fixed)
        stream.register_trade_cancels(fixed)
        def asked() -> float:
            r = httpx.get(f"{s.url}/v2/stocks/AAPL/bars", params={"timeframe": "1Min", "limit": 1}, headers=keys(s))
            return float(r.json()["bars"][0]["v"])
        with running(stream):
            until(lambda: [e for e in s.get("events") if e["kind"] == "subscribe"])
            s.step(61)
            until(lambda: got["bars"])
            assert asked() == 590
            s.step(60)
            until(lambda: got["again"] and len([x for x in got["fixed"] if type(x).__name__ in ("TradeCorrection", "TradeCancel")]) == 2)
            assert asked() == 590
    assert (got["bars"][0].volume, got["again"][0].volume, got["bars"][0].timestamp) == (590, 590, got["again"][0].timestamp)
    assert got["again"][0].low < got["bars"][0].low     # a trade was corrected downwards


def test_a_part_of_a_position_is_closed_as_finely_as_the_exchange_trades(server: PracticeServer) -> None:
    c = trading_client(server)
    c.submit_order(market(qty=10))
    assert c.close_position("AAPL", ClosePositionRequest(percentage="33.3333333333")).qty == "3.333333"
    server.step(2)
    assert c.get_open_position("AAPL").qty == "6.666667"
    c.close_position("AAPL")
    server.step(2)
    assert server.get("truth")["positions"] == {}


# ---- memory, seeds, invariants


def test_a_restarted_server_remembers(tmp_path: Path) -> None:
    with serve(state=tmp_path) as s:
        s.step(3)
        c = trading_client(s)
        c.submit_order(market(client_order_id="b", order_class=OrderClass.BRACKET, take_profit=TakeProfitRequest(limit_price=120),
                              stop_loss=StopLossRequest(stop_price=80)))
        trail = c.submit_order(TrailingStopOrderRequest(symbol="MSFT", qty=1, side=BUY, time_in_force=DAY, trail_price=5))
        before = s.get("truth")
    with serve(state=tmp_path) as s:
        after, c = s.get("truth"), trading_client(s)
        for k in ("orders", "positions", "executions", "cash"): assert after[k] == before[k]
        assert refused(lambda: c.submit_order(market(client_order_id="b"))).code == 40010001
        s.step(30)
        assert c.get_order_by_id(trail.id).hwm is not None
        c.cancel_orders()
        assert c.get_orders() == [] and c.get_open_position("AAPL").qty_available == "10"


def session(seed: int, state: Path) -> tuple[Any, Any]:
    "Random requests against random faults; nothing but the seed decides."
    rng = np.random.default_rng(seed)
    kinds = [k for k in ALPACA_KINDS + ALPACA_MORE if "slow" not in k and k not in ("accept_late", "fill_first")]
    with PracticeServer(TAPE, AlpacaTerms(seed=seed, partial_prob=0.3), 0.0, state=state, script=random_script(seed, 300, 8, kinds), seed=seed) as s:
        s.step(3)
        ids: list[str] = []
        with httpx.Client(base_url=s.url, headers=keys(s), timeout=5) as h:
            for k in range(60):
                symbol, side = ["AAPL", "MSFT"][int(rng.integers(2))], ["buy", "sell"][int(rng.integers(2))]
                body = {"symbol": symbol, "qty": str(int(rng.integers(1, 50))), "side": side, "type": "market",
                        "time_in_force": "day", "client_order_id": f"o{k}"}
                if rng.random() < 0.5: body |= {"type": "limit", "limit_price": str(round(float(rng.integers(9_900, 10_200)) / 100, 2))}
                try:
                    if rng.random() < 0.75:
                        r = h.post("/v2/orders", json=body)
                        if r.status_code == 200: ids.append(r.json()["id"])
                    elif ids: h.delete(f"/v2/orders/{ids[int(rng.integers(len(ids)))]}")
                except httpx.TransportError: pass   # a fault cut the line
                s.step(float(rng.integers(1, 6)))
        return s.get("truth"), s.get("faults")


def check_books(truth: Any) -> None:
    "Cash, positions and orders follow from the executions and from nothing else."
    filled: dict[str, Decimal] = {}
    cash, held = Decimal(truth["start_cash"]), dict[str, Decimal]()
    for x in truth["executions"]:
        qty, id = Decimal(x["qty"]), x["order"].partition("#")[0]
        cash -= qty * Decimal(x["px"]) * x["side"]
        held[x["symbol"]] = held.get(x["symbol"], Decimal(0)) + qty * x["side"]
        filled[id] = filled.get(id, Decimal(0)) + qty
    assert cash == Decimal(truth["cash"])
    assert {s: q for s, q in held.items() if q} == {s: Decimal(q) for s, q in truth["positions"].items()}
    assert all(filled.get(o["id"], Decimal(0)) == Decimal(o["filled_qty"]) <= Decimal(o["qty"]) for o in truth["orders"])
    assert all((o["status"] == "filled") == (o["filled_qty"] == o["qty"]) for o in truth["orders"])
    assert len({o["client_order_id"] for o in truth["orders"]}) == len(truth["orders"]) == len({o["id"] for o in truth["orders"]})


@pytest.mark.parametrize("seed", [11, 12])
def test_whatever_the_wire_does_the_venues_books_balance(seed: int, tmp_path: Path) -> None:
    truth, faults = session(seed, tmp_path / "a")
    assert len(truth["executions"]) > 10 and faults
    check_books(truth)
    assert session(seed, tmp_path / "b") == (truth, faults)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(1000, 1200))
def test_many_seeds(seed: int, tmp_path: Path) -> None:
    check_books(session(seed, tmp_path)[0])


# ---- the command


def start_command(folder: Path) -> tuple[subprocess.Popen[str], dict[str, str]]:
    "`scalp practice alpaca` as a process of its own, and the environment it prints."
    code = "from scalp_nb.practice.cli import app; app()"
    command = [sys.executable, "-c", code, "alpaca", "--recording", str(folder / "r.parquet"), "--faults", str(folder / "f.yaml"),
               "--state", str(folder / "state")]
    p = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert p.stdout is not None
    lines = [p.stdout.readline() for _ in range(10)]
    return p, dict(line.removeprefix("export ").strip().split("=", 1) for line in lines if line.startswith("export "))


def test_the_command_serves_and_a_killed_venue_comes_back(tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_text("- {fault: http_429, nth: 1}\n")
    write_parquet(TAPE.rows, TAPE.universe, tmp_path / "r.parquet", "a walk")
    p, said = start_command(tmp_path)
    try:
        with httpx.Client(headers={"APCA-API-KEY-ID": said["APCA_API_KEY_ID"], "APCA-API-SECRET-KEY": said["APCA_API_SECRET_KEY"]}) as h:
            url = said["APCA_API_BASE_URL"] + "/v2/"
            assert [h.get(url + "clock").status_code for _ in range(2)] == [429, 200]
            until(lambda: h.get(url + "stocks/AAPL/quotes/latest").status_code == 200)
            for k, extra in enumerate(({}, {"type": "limit", "limit_price": "90"})):
                order = {"symbol": "AAPL", "qty": "3", "side": "buy", "type": "market", "time_in_force": "day", "client_order_id": f"k{k}", **extra}
                assert h.post(url + "orders", json=order).status_code == 200
            until(lambda: h.get(url + "positions").json())
            before = h.get(url + "orders", params={"status": "all"}).json()
            p.kill()
            p.wait(10)
            p, said = start_command(tmp_path)
            url = said["APCA_API_BASE_URL"] + "/v2/"
            assert h.get(url + "clock").status_code == 429   # the script starts anew
            assert h.get(url + "orders", params={"status": "all"}).json() == before
            assert [x["qty"] for x in h.get(url + "positions").json()] == ["3"]
            assert h.delete(url + f"orders/{before[0]['id']}").status_code == 204
        p.send_signal(signal.SIGTERM)
        assert p.wait(10) == 0
    finally: p.kill()


def test_us_minute_bars_are_a_market() -> None:
    from scalp_nb.practice.venue import bar_tape, uncounted
    file = realdata("us_bars/us_24symbols_1min_2019-02-11_2019-02-15.tar.xz")
    tape = bar_tape(file, "2019-02-13")
    assert uncounted(tape.bars)   # this source counts no trades: whoever plays it says how many a bar shall have
    counted = bar_tape(file, "2019-02-13", trades=20).bars
    traded = counted["volume"] > 0
    assert not uncounted(counted) and set(counted["trades"][traded].tolist()) == {20} and not counted["trades"][~traded].any()
    with PracticeServer(tape, speed=0.0) as s:
        s.step(600)
        c, symbol = trading_client(s), tape.universe.symbols[0]
        assert c.get_order_by_id(c.submit_order(market(symbol=symbol, qty=1)).id).status.value == "filled"
        r = httpx.get(s.url + "/v2/stocks/bars", params={"symbols": symbol, "timeframe": "1Min", "limit": 10_000},
                      headers=keys(s))
        times = [b["t"] for b in r.json()["bars"][symbol]]
        assert times[0] < "2019-02-13" < times[-1] <= "2019-02-13T14:40:00Z"
