"""The Angel One practice venue, met by Angel One's own SDK, by its recorded answers and packets, and by everything that can go wrong."""

import importlib
import json
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
from practice_angel import connect, contained, fixture, market_socket, order, order_socket, sdk, totp, until

from scalp_nb.practice.angel_one import AngelServer
from scalp_nb.practice.angel_orders import AngelTerms
from scalp_nb.practice.faults import ANGEL_KINDS, ANGEL_MORE, CATALOGUE, random_script, read_script
from scalp_nb.practice.venue import walk_tape

pytest.importorskip("pyotp")
TAPE = walk_tape(("INFY", "TCS"), 900, venue="NSE")


def serve(*script: dict[str, Any], speed: float = 0.0, state: Path | None = None, seed: int = 0, tls: bool = False, **terms: Any) -> AngelServer:
    account = AngelTerms(**{"rate_limits": False, "seed": seed, **terms})
    return AngelServer(TAPE, account, speed, state=state, script=read_script(script), seed=seed, tls=tls)


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
def server(request: pytest.FixtureRequest) -> Iterator[AngelServer]:
    with serve(tls=request.param) as s, contained(s):
        s.step(3)
        yield s


@pytest.fixture
def plain() -> Iterator[AngelServer]:
    with serve() as s, contained(s):
        s.step(3)
        yield s


# ---- the SDK, end to end


def test_the_sdk_logs_in_reads_the_account_and_leaves(server: AngelServer) -> None:
    c = connect(server)
    assert (c.userId, c.bearer) == (server.terms.client_code, f"Bearer {c.access_token}")
    funds = c.rmsLimit()["data"]
    assert (funds["net"], funds["utilisedspan"]) == ("1000000.0000", None)
    for empty in (c.orderBook, c.tradeBook, c.position, c.holding, c.allholding): assert empty()["data"] is None
    old = c.access_token
    assert c.generateToken(c.refresh_token)["status"] is True and c.access_token != old
    assert c.terminateSession(server.terms.client_code)["data"] is None
    assert c.rmsLimit() == {"success": False, "message": "Invalid Token", "errorCode": "AG8001", "data": ""}


def test_an_orders_life_through_the_sdk_and_its_order_socket(server: AngelServer) -> None:
    c = connect(server)
    with order_socket(server, c) as (ws, heard):
        def said() -> list[str]: return [orjson.loads(m)["order-status"] for m in heard if m and m != "pong"]
        until(lambda: said() == ["AB00"])
        placed = c.placeOrderFullResponse(order(price=95, ordertag="abc123"))["data"]
        assert [r["status"] for r in c.orderBook()["data"]] == ["put order req received"]
        server.step(1)
        until(lambda: said() == ["AB00", "AB09", "AB01"])
        row = c.individual_order_details(placed["uniqueorderid"])["data"]
        assert (row["status"], row["ordertag"], row["orderid"], row["updatetime"][:11]) == ("open", "abc123", placed["orderid"], "19-Nov-2026")
        changed = c.modifyOrder({**order(price=96, qty=20), "orderid": placed["orderid"]})["data"]
        assert changed["uniqueorderid"] == placed["uniqueorderid"]
        server.step(1)
        until(lambda: said()[3:] == ["AB11", "AB04"])
        stale = orjson.loads([m for m in heard if m][-1])["orderData"]
        assert (stale["price"], stale["quantity"], stale["status"]) == (95.0, "10", "modified")
        now = c.orderBook()["data"][0]
        assert (now["price"], now["quantity"], now["status"], now["orderstatus"]) == (96.0, "20", "modified", "open")
        assert c.cancelOrder(placed["orderid"], "NORMAL")["data"]["uniqueorderid"] == placed["uniqueorderid"]
        server.step(1)
        until(lambda: said()[5:] == ["AB02"])
        bought = c.placeOrder(order(price=105))
        server.step(1)
        until(lambda: said()[6:] == ["AB09", "AB01", "AB05"])
        ws.wsapp.send("ping")
        until(lambda: "pong" in heard)
    assert [r["status"] for r in c.orderBook()["data"]] == ["cancelled", "complete"]
    trade, held = c.tradeBook()["data"][0], c.position()["data"][0]
    assert (trade["orderid"], trade["fillsize"], held["netqty"], held["netvalue"][:2]) == (bought, "10", "10", "- ")
    truth = server.get("truth")
    assert truth["positions"] == {"INFY": "10"} and Decimal(truth["executions"][0]["px"]) == Decimal(trade["fillprice"])


def test_the_sdks_market_socket_decodes_every_mode(server: AngelServer) -> None:
    c = connect(server)
    with market_socket(server, c, ["1001"]) as (ws, got):
        first = until(lambda: got)[0]
        row = TAPE.rows[(TAPE.rows["sym"] == 0) & (TAPE.rows["ts"] <= server.get("clock")["now"])][-1]
        assert (first["token"], first["last_traded_price"], first["subscription_mode_val"]) == ("1001", round(row["ltp"] * 100), "SNAP_QUOTE")
        assert first["exchange_timestamp"] == int(row["ts"]) // 10**9 * 1000
        buy, sell = first["best_5_buy_data"], first["best_5_sell_data"]
        assert [b["price"] for b in buy] == [round(x * 100) for x in row["bid_px"]] and [b["quantity"] for b in buy] == row["bid_qty"].tolist()
        assert [s["price"] for s in sell] == [round(x * 100) for x in row["ask_px"]]
        assert ({s["flag"] for s in sell}, {b["flag"] for b in buy}) == ({0}, {1})
        assert (first["total_buy_quantity"], first["total_sell_quantity"]) == (row["total_buy"], row["total_sell"])
        assert first["lower_circuit_limit"] < first["last_traded_price"] < first["upper_circuit_limit"]
        ws.subscribe("two", 1, [{"exchangeType": 1, "tokens": ["1002"]}])
        ws.subscribe("three", 2, [{"exchangeType": 1, "tokens": ["1002"]}])
        until(lambda: {g["subscription_mode"] for g in got} == {1, 2, 3})
        del got[:]
        server.step(5)
        until(lambda: len(got) == 15)
        assert [g["token"] for g in got].count("1002") == 10
        ws.unsubscribe("three", 3, [{"exchangeType": 1, "tokens": ["1001"]}])
        until(lambda: not any(line["subscriptions"] == 3 for line in server.get("truth")["lines"]))
        del got[:]
        server.step(2)
        until(lambda: len(got) == 4)
        assert {g["token"] for g in got} == {"1002"}


def test_the_sdk_reads_quotes_candles_scrips_margin_and_charges(plain: AngelServer) -> None:
    plain.step(300)
    c = connect(plain)
    quote = c.getMarketData("FULL", {"NSE": ["1001"]})["data"]["fetched"][0]
    recorded = json.loads(fixture("rest_quote_FULL_ZOMATO_2024-12-20_preopen.json").read_text())["data"]["fetched"][0]
    assert set(quote) == set(recorded) and set(quote["depth"]["buy"][0]) == set(recorded["depth"]["buy"][0])
    bars = c.getCandleData({"exchange": "NSE", "symboltoken": "1001", "interval": "ONE_MINUTE",
                            "fromdate": "2026-11-19 09:15", "todate": "2026-11-19 09:20"})
    assert [b[0][11:16] for b in bars["data"]] == ["09:15", "09:16", "09:17", "09:18", "09:19"]
    assert c.searchScrip("NSE", "TCS")["data"] == [{"exchange": "NSE", "tradingsymbol": "TCS-EQ", "symboltoken": "1002"}]
    assert c.ltpData("NSE", "INFY-EQ", "1001")["data"]["ltp"] == quote["ltp"]
    one = {"exchange": "NSE", "qty": 50, "price": "1000", "productType": "INTRADAY", "token": "1001", "tradeType": "BUY", "orderType": "LIMIT"}
    assert c.getMarginApi({"positions": [one]})["data"]["totalMarginRequired"] == 10_000
    leg = {"product_type": "INTRADAY", "quantity": "100", "price": "1000", "exchange": "NSE", "symbol_name": "INFY", "token": "1001"}
    bill = c.estimateCharges({"orders": [{**leg, "transaction_type": s} for s in ("BUY", "SELL")]})["data"]["summary"]
    assert round(bill["total_charges"], 2) == 82.68
    assert {r["SymbolName"] for r in c.nseIntraday()["data"]} == {"INFY", "TCS"}


# ---- refusals, by the SDK


def test_wrong_keys_by_the_sdk(plain: AngelServer) -> None:
    c, t = connect(plain, enter=False), plain.terms
    assert c.generateSession(t.client_code, t.pin, "000000") == {"status": False, "message": "Invalid totp", "errorcode": "AB1050", "data": None}
    assert c.generateSession(t.client_code, "0000", totp(plain))["errorcode"] == "AB1007"
    plain.post("skew", seconds=-300)
    assert c.generateSession(t.client_code, t.pin, totp(plain))["errorcode"] == "AB1050"
    plain.post("skew", seconds=0)
    good = connect(plain)
    plain.post("expire")
    assert good.orderBook()["errorCode"] == "AG8002"
    again = connect(plain)
    plain.post("login_elsewhere")
    assert again.orderBook()["errorCode"] == "AG8001"


REFUSED_AT_ONCE = [
    ({"variety": "AMO"}, "AB1007"), ({"variety": "ROBO", "producttype": "BO", "squareoff": "2", "stoploss": "1"}, "AB2002"),
    ({"variety": "QUICK"}, "AB1008"), ({"variety": "STOPLOSS"}, "AB1008"),
    ({"ordertype": "STOPLOSS_LIMIT", "triggerprice": "94"}, "AB1008"), ({"tradingsymbol": "INFY"}, "AB1009"),
    ({"symboltoken": "1002"}, "AB1009"), ({"exchange": "BSE"}, "AB1009"), ({"producttype": "CARRYFORWARD"}, "AB1012"),
    ({"ordertag": "t" * 21}, "AB4008"),
    ({"quantity": "0"}, "AB1007"), ({"price": "0"}, "AB1007"), ({"duration": "GTC"}, "AB1007"), ({"transactiontype": "SHORT"}, "AB1007")]


@pytest.fixture(scope="module")
def strict() -> Iterator[AngelServer]:
    with serve(not_shortable=frozenset({"TCS"}), surveillance=frozenset({"TCS"})) as s, contained(s):
        s.step(3)
        yield s


@pytest.fixture(scope="module")
def client(strict: AngelServer) -> Any: return connect(strict)


@pytest.mark.parametrize(("change", "code"), REFUSED_AT_ONCE, ids=str)
def test_what_the_application_refuses_at_once(strict: AngelServer, client: Any, change: dict[str, str], code: str) -> None:
    got = client.placeOrderFullResponse({**order(), **change})
    assert (got["status"], got["errorcode"], got["data"]) == (False, code, None)
    assert client.placeOrder({**order(), **change}) is None and strict.get("truth")["executions"] == []


REFUSED_LATER = [
    ({"ordertype": "MARKET", "price": "0"}, "Market orders"), ({"duration": "IOC"}, "IOC"), ({"price": "95.005"}, "tick"),
    ({"price": "115"}, "circuit"), ({"price": "80"}, "circuit"), ({"quantity": "60000"}, "Insufficient Funds"),
    ({"transactiontype": "SELL", "producttype": "DELIVERY"}, "short sell"),
    ({"tradingsymbol": "TCS-EQ", "symboltoken": "1002"}, "scripconsent"),
    ({"tradingsymbol": "TCS-EQ", "symboltoken": "1002", "transactiontype": "SELL", "scripconsent": "yes"}, "short sell"),
    ({"variety": "STOPLOSS", "ordertype": "STOPLOSS_LIMIT", "transactiontype": "SELL", "price": "99", "triggerprice": "98"}, "trigger")]


@pytest.mark.parametrize(("change", "says"), REFUSED_LATER, ids=str)
def test_what_risk_management_and_the_exchange_refuse_a_moment_later(strict: AngelServer, client: Any, change: dict[str, str], says: str) -> None:
    placed = client.placeOrderFullResponse({**order(), **change})
    assert placed["status"] is True   # accepted first
    strict.step(0.1)
    row = next(r for r in client.orderBook()["data"] if r["orderid"] == placed["data"]["orderid"])
    assert row["status"] == "rejected" and says in row["text"]


def test_freeze_hours_and_the_unregistered_address() -> None:
    with serve(cash=10**9) as s, contained(s):
        s.step(3)
        c = connect(s)
        c.placeOrder(order(qty=100_001))
        s.step(1)
        assert "freeze" in c.orderBook()["data"][0]["text"]
        s.step(7 * 3600)
        night = c.placeOrder(order())
        s.step(1)
        assert c.orderBook()["data"][1]["status"] == "after market order req received"
        c.cancelOrder(night, "NORMAL")
        s.step(1)
        assert c.orderBook()["data"][1]["status"] == "cancelled after market order"
    with serve(static_ip_ok=False) as s, contained(s):
        s.step(3)
        c = connect(s)
        for call in (lambda: c.placeOrderFullResponse(order()), lambda: c.modifyOrder(order()), lambda: c.cancelOrder("1", "NORMAL")):
            assert call()["errorCode"] == "AG7002"
        assert c.orderBook()["data"] is None   # reading works from anywhere


def test_a_market_order_where_they_are_converted_is_a_limit_half_a_per_cent_away() -> None:
    with serve(market_orders="convert") as s, contained(s):
        s.step(3)
        c = connect(s)
        c.placeOrder(order(ordertype="MARKET", price="0"))
        s.step(1)
        row = c.orderBook()["data"][0]
        last = Decimal(str(c.ltpData("NSE", "INFY-EQ", "1001")["data"]["ltp"]))
        assert (row["ordertype"], row["status"]) == ("LIMIT", "complete") and abs(Decimal(str(row["price"])) / last - 1) < Decimal("0.006")


def test_rate_limits_are_plain_text_and_count_venue_time() -> None:
    with serve(rate_limits=True) as s, contained(s):
        s.step(3)
        c = connect(s)
        assert c.orderBook()["status"] is True
        with pytest.raises(Exception, match="exceeding access rate") as e: c.orderBook()
        assert type(e.value).__name__ == "DataException"
        head = {"X-PrivateKey": s.terms.api_key, "Authorization": c.bearer}
        url = f"{s.url}/rest/secure/angelbroking/order/v1"
        answers = [httpx.post(f"{url}/placeOrder", json=order(), headers=head).status_code for _ in range(9)]
        answers.append(httpx.post(f"{url}/cancelOrder", json={"variety": "NORMAL", "orderid": "1"}, headers=head).status_code)
        assert answers == [200] * 9 + [403]
        s.step(1.5)
        assert c.orderBook()["status"] is True


# ---- recorded answers and packets


def test_error_bodies_are_the_recorded_ones(plain: AngelServer) -> None:
    recorded = json.loads(fixture("rest_error_bodies_2024-12.json").read_text())
    c = connect(plain)
    head = {"X-PrivateKey": plain.terms.api_key}
    def body(path: str, json: Any, **more: str) -> Any: return httpx.post(plain.url + path, json=json, headers={**head, **more}).json()
    quote, login, candles = recorded[0], recorded[1], recorded[2]
    assert body(quote["url"], {"mode": "LTP"}, Authorization="Bearer x") == quote["response"]
    assert body(login["url"], {"clientcode": plain.terms.client_code, "password": plain.terms.pin, "totp": "1"}) == login["response"]
    assert body(candles["url"], {"interval": "X"}, Authorization=c.bearer) == candles["response"]


def test_rows_have_the_recorded_fields(plain: AngelServer) -> None:
    recorded = json.loads(fixture("rest_responses_official_js_sdk_tests.json").read_text())
    c = connect(plain)
    c.placeOrder(order(price=105))
    plain.step(1)
    details = recorded["indOrderDetails"]["data"]
    row = c.orderBook()["data"][0]
    assert set(details) <= set(row) and {k: type(row[k]) in (type(v), float) for k, v in details.items()} == dict.fromkeys(details, True)
    assert set(recorded["tradeBook"]["data"][0]) == set(c.tradeBook()["data"][0])
    assert set(c.position()["data"][0]) - set(recorded["getPosition"]["data"][0]) == {"ltp", "pnl"}
    assert set(recorded["getPosition"]["data"][0]) <= set(c.position()["data"][0])
    assert set(recorded["getRMS"]["data"]) == set(c.rmsLimit()["data"])


def test_order_messages_have_the_recorded_shape(plain: AngelServer) -> None:
    recorded = json.loads(fixture("ws_order_update_2024-12-26.json").read_text())
    c = connect(plain)
    with order_socket(plain, c) as (_, heard):
        until(lambda: heard)
        c.placeOrder(order(price=105))
        plain.step(1)
        until(lambda: len(heard) == 4)
    said = [orjson.loads(m) for m in heard]
    for mine, theirs in ((said[1], recorded[0]), (said[3], recorded[1])):
        assert (mine["order-status"], set(mine)) == (theirs["order-status"], set(theirs))
        assert {k: type(v) for k, v in mine["orderData"].items()} == {k: type(v) for k, v in theirs["orderData"].items()}
        assert [bool(m["orderData"]["exchtime"]) for m in (mine, theirs)] in ([False] * 2, [True] * 2)
        assert mine["orderData"]["status"] == theirs["orderData"]["status"]
    assert said[0]["order-status"] == "AB00" and set(said[0]["orderData"]) == set(recorded[0]["orderData"])


@pytest.mark.parametrize("name", ["1735201464_INFY_1594", "1689225333_NIFTYopt_41735", "1737356263_NIFTYopt_54786"])
def test_a_recorded_tick_made_into_a_row_gives_the_recorded_tick_again(name: str) -> None:
    "Tick -> depth row -> this venue's packet -> the SDK's decoder -> the tick."
    from angel_sdk import sdk_decoder

    from scalp_nb.feed.depth import depth_row
    from scalp_nb.feed.instrument import Instrument, Universe
    from scalp_nb.practice.angel_packets import make_market, packet_at
    from scalp_nb.practice.venue import make_tape
    tick = json.loads(fixture(f"pysdk_snapquote_{name}_sdk_after_swap_fix.json").read_text())
    def levels(side: str) -> list[tuple[float, float, float]]:
        return [(x["price"] / 100, x["quantity"], x["no of orders"]) for x in tick[f"best_5_{side}_data"]]
    segment = {1: "CM", 2: "FO"}[tick["exchange_type"]]
    row = depth_row(tick["exchange_timestamp"] * 10**6, 0, levels("buy"), levels("sell"), ltp=tick["last_traded_price"] / 100,
                    ltq=tick["last_traded_quantity"], volume=tick["volume_trade_for_the_day"], total_buy=tick["total_buy_quantity"],
                    total_sell=tick["total_sell_quantity"], seq=tick["sequence_number"])
    tape = make_tape(row, Universe("one", (Instrument("X", "NSE", tick["token"], segment=segment),)))
    bands = ((Decimal(tick["lower_circuit_limit"]) / 100, Decimal(tick["upper_circuit_limit"]) / 100),)
    back = sdk_decoder()(packet_at(make_market(tape, (Decimal(tick["closed_price"]) / 100,), bands), 0, 3))
    unknown = {"open_interest", "open_interest_change_percentage", "52_week_high_price", "52_week_low_price", "last_traded_timestamp",
               "open_price_of_the_day", "high_price_of_the_day", "low_price_of_the_day", "average_traded_price"}   # not in a depth row
    assert {k: v for k, v in back.items() if k not in unknown} == {k: v for k, v in tick.items() if k not in unknown}


# ---- sockets without the SDK


def _ws(url: str, head: dict[str, str] | None = None, **kw: Any) -> Any:
    from websockets.sync.client import connect as dial
    return dial(url, additional_headers=head or {}, **kw)


def _keys(s: AngelServer, c: Any) -> dict[str, str]:
    return {"Authorization": c.access_token, "x-api-key": s.terms.api_key, "x-client-code": s.terms.client_code, "x-feed-token": c.feed_token}


def _status(f: Any) -> tuple[int, str]:
    from websockets.exceptions import InvalidStatus
    with pytest.raises(InvalidStatus) as e: f()
    return e.value.response.status_code, e.value.response.headers.get("x-error-message", "")


def test_the_handshake_refuses_by_status_and_header(plain: AngelServer) -> None:
    c = connect(plain)
    good = _keys(plain, c)
    assert _status(lambda: _ws(plain.stream_url)) == (401, "Invalid Feed Token")
    assert _status(lambda: _ws(plain.stream_url, {**good, "Authorization": "x"})) == (401, "Invalid Token")
    assert _status(lambda: _ws(plain.updates_url, good)) == (401, "Invalid Token")   # without Bearer
    query = f"?clientCode={plain.terms.client_code}&feedToken={c.feed_token}&apiKey={plain.terms.api_key}"
    with _ws(plain.stream_url, good), _ws(plain.stream_url, {**good, "Authorization": c.bearer}), _ws(plain.stream_url + query):
        assert _status(lambda: _ws(plain.stream_url, good))[0] == 429
        with _ws(plain.updates_url, {"Authorization": c.bearer}) as w: assert orjson.loads(w.recv(5))["order-status"] == "AB00"
    plain.post("expire")
    assert _status(lambda: _ws(plain.updates_url, {"Authorization": c.bearer})) == (403, "Token Expired")
    assert _status(lambda: _ws(plain.stream_url, good)) == (401, "Token Expired")


def test_heartbeat_errors_and_the_limit_of_subscriptions(plain: AngelServer) -> None:
    c = connect(plain)
    def ask(tokens: list[str], mode: int = 3, **more: Any) -> str:
        params = {"mode": mode, "tokenList": [{"exchangeType": 1, "tokens": tokens}]}
        return json.dumps({"correlationID": "abc", "action": 1, "params": params, **more})
    with _ws(plain.stream_url, _keys(plain, c)) as w:
        w.send("ping")
        assert w.recv(5) == "pong"
        w.send(ask(["1001"], mode=4))
        assert json.loads(w.recv(5)) == {"correlationID": "abc", "errorCode": "E1001", "errorMessage": "Invalid Request Payload."}
        w.send(ask([str(5000 + k) for k in range(999)]))
        w.send(ask(["1001"]))
        assert len(w.recv(5)) == 379
        w.send(ask(["1001", "5001"]))   # twice is once
        w.send(ask(["1002"]))
        assert json.loads(w.recv(5))["errorCode"] == "E1002"


RECORDED = ["NIFTY25DECFUT_2025-12-29_kite_5level.csv.gz", "NIFTY25DECFUT_2025-12-29_dhan_5level.csv.gz",
            "RELIANCE_2021-04-30_kite_full_26ticks.jsonl.gz"]


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_depth_arrives_as_packets_that_decode_to_it(name: str) -> None:
    from realdata import realdata

    from scalp_nb.feed.packet import exchange_type, read_packet, token_table
    from scalp_nb.practice.venue import recording_tape
    with AngelServer(recording_tape(realdata(f"nse_depth/{name}"), "NSE"), AngelTerms(rate_limits=False), 0.0) as s, contained(s):
        c, (ins,) = connect(s), s.tape.universe.instruments
        with _ws(s.stream_url, _keys(s, c)) as w:
            w.send(json.dumps({"action": 1, "params": {"mode": 3, "tokenList": [{"exchangeType": exchange_type(ins), "tokens": [ins.token]}]}}))
            until(lambda: s.get("truth")["lines"][0]["subscriptions"])
            known = s.api.desk.cursor - 1
            played = min(1 + s.step(60)["rows"], 200)   # the snapshot that a subscription is answered with, then row by row
            packets = [w.recv(5) for _ in range(played)]
        table = token_table(s.tape.universe)
        for row, packet in zip(s.tape.rows[known:known + played], packets, strict=True):
            back = read_packet(packet, table, 0)[0]
            assert back["ts"] == row["ts"] // 10**9 * 10**9
            for field in ("ltp", "ltq", "volume", "total_buy", "total_sell", "bid_px", "bid_qty", "bid_orders", "ask_px", "ask_qty", "ask_orders"):
                np.testing.assert_array_equal(back[field], row[field], field)


def start_command(folder: Path) -> tuple[subprocess.Popen[str], dict[str, str]]:
    "`scalp practice angel` as a process of its own, and the environment it prints."
    code = "from scalp_nb.practice.cli import app; app()"
    command = [sys.executable, "-c", code, "angel", "--tls", "--symbols", "3", "--seconds", "120", "--state", str(folder / "state")]
    p = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert p.stdout is not None
    lines = [p.stdout.readline() for _ in range(12)]
    return p, dict(line.removeprefix("export ").strip().split("=", 1) for line in lines if line.startswith("export "))


def test_the_command_serves_over_tls_and_a_killed_venue_comes_back(tmp_path: Path) -> None:
    import pyotp
    p, said = start_command(tmp_path)
    assert {k.removeprefix("ANGEL_") for k in said} == {"API_KEY", "CLIENT_CODE", "PIN", "TOTP_SECRET", "REST_URL", "STREAM_URL", "UPDATES_URL",
                                                        "MASTER_URL", "CA_FILE", "SCALP_PRACTICE_URL", "SCALP_PRACTICE_TOKEN"}
    try:
        trust, head = ssl.create_default_context(cafile=said["ANGEL_CA_FILE"]), {"X-PrivateKey": said["ANGEL_API_KEY"]}
        who = {"clientcode": said["ANGEL_CLIENT_CODE"], "password": said["ANGEL_PIN"], "totp": pyotp.TOTP(said["ANGEL_TOTP_SECRET"]).now()}
        with httpx.Client(headers=head, verify=trust) as h:
            got = h.post(said["ANGEL_REST_URL"] + "/rest/auth/angelbroking/user/v1/loginByPassword", json=who).json()["data"]
            h.headers["Authorization"] = "Bearer " + got["jwtToken"]
            book = "/rest/secure/angelbroking/order/v1/"
            mine = order(tradingsymbol="RELIANCE-EQ", symboltoken="2885", price=1300, ordertag="kept", qty=1)
            placed = h.post(said["ANGEL_REST_URL"] + book + "placeOrder", json=mine).json()["data"]
            p.kill()
            p.wait(10)
            p, said = start_command(tmp_path)
            def row() -> Any: return h.get(f"{said['ANGEL_REST_URL']}{book}details/{placed['uniqueorderid']}").json()["data"]
            until(lambda: row()["status"] == "open")   # the token is still good, and the order went on from where it was
            assert row()["ordertag"] == "kept"
    finally:
        p.terminate()
        assert p.wait(10) == 0


# ---- over a restart, and faults


def test_a_restart_keeps_orders_positions_and_tokens(tmp_path: Path) -> None:
    with serve(state=tmp_path, tls=True) as s, contained(s):
        s.step(3)
        c = connect(s)
        bought, rests = c.placeOrder(order(price=105)), c.placeOrder(order(price=95, ordertag="keep"))
        s.step(1)
        before, held, ca = c.orderBook()["data"], c.position()["data"], (tmp_path / "ca.pem").read_bytes()
        moving = c.placeOrder(order(price=94))
    with serve(state=tmp_path, tls=True) as s, contained(s):
        c.root = c._rootUrl = s.url
        assert (tmp_path / "ca.pem").read_bytes() == ca
        assert c.orderBook()["data"][:2] == before and c.position()["data"][0]["netqty"] == held[0]["netqty"]
        s.step(1)
        assert {r["orderid"]: r["status"] for r in c.orderBook()["data"]} == {bought: "complete", rests: "open", moving: "open"}
        c.cancelOrder(rests, "NORMAL")
        s.step(1)
        assert s.get("truth")["orders"][1]["status"] == "cancelled"


def test_partial_fills_show_as_open_with_filled_shares() -> None:
    with serve(partial_prob=1.0, seed=3) as s, contained(s):
        s.step(3)
        c = connect(s)
        c.placeOrder(order(price=105, qty=400))
        s.step(0.1)
        row = c.orderBook()["data"][0]
        assert row["status"] == "open" and 0 < int(row["filledshares"]) < 400 and int(row["filledshares"]) + int(row["unfilledshares"]) == 400


def test_a_mute_socket_still_answers_pings_after_the_tokens_rolled_over(plain: AngelServer) -> None:
    c = connect(plain)
    with _ws(plain.stream_url, _keys(plain, c)) as w:
        w.send(json.dumps({"action": 1, "params": {"mode": 1, "tokenList": [{"exchangeType": 1, "tokens": ["1001"]}]}}))
        assert len(w.recv(5)) == 51
        plain.post("fault", fault="mute_after_rollover")
        plain.step(5)
        w.send("ping")
        assert w.recv(5) == "pong"
        assert c.orderBook()["errorCode"] == "AG8002"
        with _ws(plain.stream_url, _keys(plain, connect(plain))) as fresh:
            fresh.send(json.dumps({"action": 1, "params": {"mode": 1, "tokenList": [{"exchangeType": 1, "tokens": ["1001"]}]}}))
            assert len(fresh.recv(5)) == 51


def test_somebody_elses_login_tears_the_sockets(plain: AngelServer) -> None:
    from websockets.exceptions import ConnectionClosed
    c = connect(plain)
    with _ws(plain.stream_url, _keys(plain, c)) as w, _ws(plain.updates_url, {"Authorization": c.bearer}) as u:
        assert orjson.loads(u.recv(5))["order-status"] == "AB00"
        plain.post("fault", fault="login_twice")
        for x in (w, u):
            with pytest.raises(ConnectionClosed): x.recv(5)
    assert c.orderBook()["errorCode"] == "AG8001"


def test_a_short_packet_kills_the_sdks_feed_and_only_that() -> None:
    with serve({"fault": "packet_short", "nth": 3}) as s, contained(s):
        s.step(3)
        c = connect(s)
        with market_socket(s, c, ["1001"]) as (_, got):
            until(lambda: len(got) == 1)
            s.step(1)
            until(lambda: len(got) == 2)
            s.step(3)
            until(lambda: [e for e in s.get("events") if e["kind"] == "disconnect"])
            assert len(got) == 2
        assert c.orderBook()["status"] is True


@pytest.mark.parametrize("kind", ["ack_lost", "gateway_504", "body_malformed"])
def test_an_order_whose_answer_is_lost_works_and_its_tag_is_in_the_book(kind: str) -> None:
    with serve({"fault": kind, "match": "placeOrder"}) as s, contained(s):
        s.step(3)
        c = connect(s)
        errors = (importlib.import_module("SmartApi.smartExceptions").DataException, importlib.import_module("requests").RequestException)
        with pytest.raises(errors): c.placeOrder(order(ordertag="mine"))
        assert [r["ordertag"] for r in c.orderBook()["data"]] == ["mine"]


def test_every_kind_of_fault_can_be_drawn_and_a_seed_keeps_its_script() -> None:
    drawn = {f.fault for seed in range(120) for f in random_script(seed, 600, kinds=ANGEL_KINDS)}
    assert drawn == set(ANGEL_KINDS) <= set(CATALOGUE)
    assert {f.fault for seed in range(20) for f in random_script(seed, 600, kinds=ANGEL_MORE)} == set(ANGEL_MORE) <= set(CATALOGUE)
    assert random_script(5, 600, kinds=ANGEL_KINDS) == random_script(5, 600, kinds=ANGEL_KINDS)


def test_the_master_is_open_to_all_and_all_text(server: AngelServer) -> None:
    context = ssl.create_default_context(cafile=str(server.ca_file)) if server.ca_file else None
    with urllib.request.urlopen(server.master_url, context=context) as r: rows = json.loads(r.read())
    assert all(isinstance(v, str) for row in rows for v in row.values())
    mine = {row["symbol"]: row for row in rows}["INFY-EQ"]
    wanted = {"token": "1001", "exch_seg": "NSE", "instrumenttype": "", "tick_size": "1.000000", "freeze_qty": "100000", "strike": "-1.000000"}
    assert wanted.items() <= mine.items()


def test_the_sdk_is_unmodified() -> None:
    smart, market, orders = sdk()
    assert (smart._rootUrl, market.ROOT_URI, orders.WEBSOCKET_URI) == (
        "https://apiconnect.angelone.in", "wss://smartapisocket.angelone.in/smart-stream", "wss://tns.angelone.in/smart-order-update")
