"""Crypto at the Alpaca practice venue: Alpaca's own SDK, whole sessions of the five-level scalper, a kill, and what is refused."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from alpaca_live import begun, folder, journal, of_kind, until, venue
from practice_alpaca import running, schemas, trading_client
from practice_alpaca import until as soon
from realdata import realdata
from test_live_notebook import ROOT, finish, papermill

pytest.importorskip("alpaca")

from alpaca.common.exceptions import APIError  # noqa: E402
from alpaca.trading.enums import AssetClass, OrderClass, OrderSide, TimeInForce  # noqa: E402
from alpaca.trading.requests import (  # noqa: E402
    GetAssetsRequest,
    LimitOrderRequest,
    MarketOrderRequest,
    StopLimitOrderRequest,
    StopLossRequest,
    StopOrderRequest,
    TakeProfitRequest,
)

from scalp_nb.feed.errors import ScalpError  # noqa: E402
from scalp_nb.feed.universe import load_universe  # noqa: E402
from scalp_nb.order.fees import FeeLedger, charge, fees_for  # noqa: E402
from scalp_nb.order.rules import rules_for  # noqa: E402
from scalp_nb.order.types import Intent, OrderType, Purpose, Side, Tif, UpdateKind  # noqa: E402
from scalp_nb.practice.alpaca import PracticeServer  # noqa: E402
from scalp_nb.practice.alpaca_orders import AlpacaTerms  # noqa: E402
from scalp_nb.practice.venue import Tape, joined_tapes, make_tape, recording_tape, walk_tape  # noqa: E402
from scalp_nb.trader.client import SessionClient  # noqa: E402
from scalp_nb.trader.config import load_config  # noqa: E402
from scalp_nb.trader.core import ledger_of  # noqa: E402
from scalp_nb.trader.replay import replay_run  # noqa: E402
from scalp_nb.trader.report import load_run  # noqa: E402
from scalp_nb.trader.session import EXIT_CONFIG, EXIT_OK, run_session  # noqa: E402
from scalp_nb.trader.setup import RunConfig  # noqa: E402
from scalp_nb.trader.streaming import recorded_rows  # noqa: E402
from scalp_nb.trader.venues import open_venue, shut  # noqa: E402

pytestmark = pytest.mark.usefixtures("restore_signals")
D = Decimal
BUY, SELL, GTC, IOC = OrderSide.BUY, OrderSide.SELL, TimeInForce.GTC, TimeInForce.IOC


def leaning(seconds: int = 600, seed: int = 1, n: int = 2) -> Tape:
    "A walk of pairs whose five levels lean to one side for a while, then to the other."
    tape = walk_tape([f"{chr(65 + k) * 3}/USD" for k in range(n)], seconds, seed, 40.0, venue="CRYPTO")
    rows, r = tape.rows.copy(), np.random.default_rng([seed, 9])
    lean = np.repeat(r.choice([0.2, 0.5, 0.8], (seconds // 12 + 1, n)), 12, 0)[:seconds].ravel()
    for side, share in (("bid", lean), ("ask", 1 - lean)): rows[f"{side}_qty"] = np.round(rows["bid_qty"] * 0 + share[:, None] * 80, 3)
    return make_tape(rows, tape.universe, tape.bars)


def conf(tape: Tape, seconds: float, **over: Any) -> RunConfig:
    "The five-level scalper without its fallback, quick to enter and to leave."
    end = datetime.fromtimestamp(int(tape.rows["ts"][0]) / 1e9 + seconds, UTC)
    return load_config(RunConfig, None, {
        "venue.broker": "alpaca_practice", "run.account": "test", "data.symbols": list(tape.universe.symbols), "data.end": end,
        "strategy": {"name": "pressure", "rest_s": 5.0, "cooldown_s": 1.0, "warmup_rows": 5},
        "sizing": {"mode": "percent", "balance_pct": 0.05}, "exits.time_stop_s": 20.0, "risk.avoid_first_minutes": 0,
        "risk.max_consecutive_losses": 100, "risk.max_trades_per_day": 200, "risk.max_orders_per_second": 50, "health.max_lag_ms": 60_000,
        "health.stale_ms": 60_000, "health.connection_stale_ms": 60_000, "session.drain_timeout_s": 120.0, "venue.alpaca.feed": {"batch_gap_s": 0.05},
        **over})


def same_as_venue(run_dir: Path, server: PracticeServer, account: str = "test") -> None:
    "The journal's fills are the venue's executions, each once; no order was sent twice; cash and fees in kind agree to the last digit."
    truth, fills = server.get("truth"), [n.data for n in of_kind(run_dir, "note:fill", account=account)]
    sent = [c.intent.id for c in of_kind(run_dir, "command:Submit", account=account)]
    assert len(sent) == len(set(sent)) and {o["client_order_id"] for o in truth["orders"]} <= set(sent)
    assert len({o["client_order_id"] for o in truth["orders"]}) == len(truth["orders"])
    assert len({f["exec_id"] for f in fills}) == len(fills) == len(truth["executions"]) > 0
    assert sorted(D(f.get("withheld", 0)) for f in fills) == sorted(D(e.get("kept", 0)) for e in truth["executions"])
    assert any("withheld" in f for f in fills)
    end = of_kind(run_dir, "run:end", account=account)
    if end and end[-1]["flat"]: assert D(end[-1]["equity"]) == D(truth["cash"]) and truth["positions"] == {}


@contextmanager
def ended_when(run_dir: Path, seen: Callable[[], Any], what: str) -> Iterator[None]:
    "The session inside is asked for a flat end once something has been seen, however long a busy machine takes."
    def end() -> None:
        try: until(seen, what, 120, every=0.2)
        finally:
            with SessionClient(run_dir) as c: c.stop("test")
    ender = threading.Thread(target=end)
    ender.start()
    try: yield
    finally: ender.join()


# ---- the unmodified SDK

@pytest.fixture
def server() -> Iterator[PracticeServer]:
    with PracticeServer(walk_tape(("BTC/USD", "ETH/USD"), 900, venue="CRYPTO", size=5.25), AlpacaTerms(), 0.0) as s:
        s.step(3)
        yield s


def refused(what: Any) -> APIError:
    with pytest.raises(APIError) as e: what()
    return e.value


def test_the_sdk_trades_fractions_and_pays_in_what_it_buys(server: PracticeServer) -> None:
    c = trading_client(server)
    assets = c.get_all_assets(GetAssetsRequest(asset_class=AssetClass.CRYPTO))
    assert [a.symbol for a in assets] == ["BTC/USD", "ETH/USD"] and assets[0].asset_class == AssetClass.CRYPTO and not assets[0].shortable
    assert (assets[0].min_trade_increment, assets[0].price_increment, assets[0].min_order_size) == (1e-9, 0.01, 0.0001)
    assert c.get_account().crypto_status.value == "ACTIVE"
    o = c.submit_order(LimitOrderRequest(symbol="BTC/USD", qty=0.123456789, side=BUY, time_in_force=IOC, limit_price=110.0))
    done = c.get_order_by_id(o.id)
    assert (done.symbol, done.asset_class, done.status.value, D(str(done.filled_qty))) == ("BTC/USD", AssetClass.CRYPTO, "filled", D("0.123456789"))
    p = c.get_open_position("BTCUSD")          # no slash in positions, and a quarter of a percent is gone
    assert (p.symbol, D(p.qty), p.asset_class) == ("BTCUSD", D("0.123148147"), AssetClass.CRYPTO)
    assert D("0.123456789") - D(p.qty) == D("0.000308642")
    assert refused(lambda: c.get_open_position("BTC/USD")).status_code == 404
    said = refused(lambda: c.submit_order(MarketOrderRequest(symbol="BTC/USD", qty=0.123456789, side=SELL, time_in_force=GTC)))
    assert said.status_code == 403 and "insufficient balance for BTC (requested: 0.123456789, available: 0.123148147)" in said.message
    stop = c.submit_order(StopLimitOrderRequest(symbol="BTC/USD", qty=0.123148147, side=SELL, time_in_force=GTC, stop_price=90, limit_price=89.5))
    said = refused(lambda: c.submit_order(MarketOrderRequest(symbol="BTC/USD", qty=0.1, side=SELL, time_in_force=GTC)))
    assert "available: 0)" in said.message and D(c.get_open_position("BTCUSD").qty_available) == 0   # a resting stop holds them
    c.cancel_order_by_id(stop.id)
    c.close_position("BTCUSD")
    assert c.get_all_positions() == [] and D(c.get_account().cash) < 100_000


def test_what_crypto_does_not_have_is_refused_in_words(server: PracticeServer) -> None:
    c = trading_client(server)
    plain = {"symbol": "ETH/USD", "qty": 1, "side": BUY, "time_in_force": GTC, "limit_price": 90.0}
    stop = StopOrderRequest(symbol="ETH/USD", qty=1, side=SELL, time_in_force=GTC, stop_price=80)
    def buy(**kw: Any) -> Any: return c.submit_order(LimitOrderRequest(**{**plain, **kw}))
    for words, what in (
        ("invalid crypto time_in_force", lambda: buy(time_in_force=TimeInForce.DAY)),
        ("price increment 0.01", lambda: buy(limit_price=90.001)),
        ("minimal qty of order 0.0001", lambda: buy(qty=0.00001)),
        ("minimal amount of order 10", lambda: buy(qty=0.1)),
        ("minimal trade increment", lambda: buy(qty=0.1234567891)),
        ("insufficient balance for ETH", lambda: buy(side=SELL)),
        ("invalid order type for crypto", lambda: c.submit_order(stop)),
        ("not found", lambda: buy(symbol="AAPL")),
        ("advanced order_class", lambda: buy(order_class=OrderClass.BRACKET, take_profit=TakeProfitRequest(limit_price=120),
                                             stop_loss=StopLossRequest(stop_price=80)))):
        assert words in refused(what).message, words


def test_books_trades_and_bars_reach_the_sdk(server: PracticeServer) -> None:
    from alpaca.data.historical import CryptoHistoricalDataClient
    from alpaca.data.live import CryptoDataStream
    from alpaca.data.requests import CryptoBarsRequest, CryptoLatestOrderbookRequest
    from alpaca.data.timeframe import TimeFrame
    got: dict[str, list[Any]] = {k: [] for k in ("books", "trades", "quotes")}
    stream = CryptoDataStream(server.terms.key, server.terms.secret, url_override=server.data_url)
    for kind, subscribe in (("books", stream.subscribe_orderbooks), ("trades", stream.subscribe_trades), ("quotes", stream.subscribe_quotes)):
        async def hear(x: Any, kind: str = kind) -> None: got[kind].append(x)
        subscribe(hear, "BTC/USD")
    with running(stream):
        soon(lambda: [e for e in server.get("events") if e["kind"] == "subscribe"])
        server.step(60)
        soon(lambda: len(got["trades"]) >= 60)
    assert got["books"][0].reset and [len(got["books"][0].bids), len(got["books"][0].asks)] == [5, 5]
    assert len(got["books"]) > 20 and not any(b.reset for b in got["books"][1:])
    assert any(lv.size == 0 for b in got["books"][1:] for lv in b.bids)   # gone levels
    rest = CryptoHistoricalDataClient(server.terms.key, server.terms.secret, url_override=server.url)
    book = rest.get_crypto_latest_orderbook(CryptoLatestOrderbookRequest(symbol_or_symbols=["BTC/USD"]))["BTC/USD"]
    shown = server.api.desk.venue.books[0]
    assert [(b.price, b.size) for b in book.bids] == list(zip(shown["bid_px"].tolist(), shown["bid_qty"].tolist(), strict=True))
    bars = rest.get_crypto_bars(CryptoBarsRequest(symbol_or_symbols="BTC/USD", timeframe=TimeFrame.Minute, start=datetime(2026, 11, 19, tzinfo=UTC)))
    assert len(bars["BTC/USD"]) == 1 and bars["BTC/USD"][0].volume == 600


def test_answers_fit_alpacas_published_schemas(server: PracticeServer) -> None:
    import httpx
    import jsonschema
    spec, head = schemas("data"), {"APCA-API-KEY-ID": server.terms.key, "APCA-API-SECRET-KEY": server.terms.secret}
    for kind in ("orderbooks", "quotes", "trades", "bars"):
        server.step(60)
        answer = httpx.get(f"{server.url}/v1beta3/crypto/us/latest/{kind}", params={"symbols": "BTC/USD"}, headers=head)
        assert answer.status_code == 200 and answer.json()[kind]
        jsonschema.validate(answer.json(), {**spec["components"]["schemas"][f"crypto_latest_{kind}_resp"], "components": spec["components"]})


# ---- whole sessions

def test_a_session_runs_without_its_fallback_and_ends_flat(tmp_path: Path) -> None:
    tape = leaning(3600)
    cfg = conf(tape, 3500)
    run_dir = folder(tmp_path, cfg)
    with venue(tape, 20.0, terms={"partial_prob": 0.3}) as server:
        with ended_when(run_dir, lambda: len(journal(run_dir, "note:round_trip")) > 6, "round trips"):
            assert run_session(cfg, run_dir) == EXIT_OK
        same_as_venue(run_dir, server)
        orders = server.get("truth")["orders"]
    begin, trips = of_kind(run_dir, "run:begin")[0], [n.data for n in of_kind(run_dir, "note:round_trip")]
    assert begin["fallback"] == "" and begin["capabilities"]["levels"] == 5 and begin["capabilities"]["whole_book_totals"]
    kinds = {(o["side"], o["type"], o["time_in_force"]) for o in orders}
    assert kinds == {("buy", "limit", "ioc"), ("sell", "stop_limit", "gtc"), ("sell", "limit", "gtc")}
    assert all(t["side"] == "BUY" for t in trips) and len(trips) > 3
    assert sum(D(t["net"]) for t in trips) == D(of_kind(run_dir, "run:end")[0]["equity"]) - 100_000
    assert {r.data["code"] for r in of_kind(run_dir, "note:refusal")} >= {"short_sale"}
    assert not [r.data for r in of_kind(run_dir, "note:trip")] and not any(r.data["differences"] for r in of_kind(run_dir, "note:reconcile"))
    again = replay_run(run_dir)
    assert again.ok, again.first


def test_a_killed_session_goes_on_with_the_same_books(tmp_path: Path) -> None:
    tape = leaning(1800, 3)
    cfg = conf(tape, 1500, **{"exits.time_stop_s": 0.0, "strategy.exit_on_opposite": False, "exits.stop_pct": 0.05, "exits.target_pct": 0.5})
    run_dir = folder(tmp_path, cfg)
    with venue(tape, 10.0) as server:
        life = begun(run_dir, cfg)
        def stopped() -> Any: return [o for o in server.get("truth")["orders"] if o["type"] == "stop_limit" and o["status"] == "new"]
        until(lambda: life.poll() is not None or len(stopped()) == 2, "two positions with their stops")
        held, n = server.get("truth")["positions"], len(server.get("truth")["orders"])
        os.kill(life.pid, signal.SIGKILL)
        life.wait()
        life = begun(run_dir, cfg)
        until(lambda: life.poll() is not None or len(journal(run_dir, "note:entries")) > 1, "going on")
        assert life.poll() is None, life.stderr and life.stderr.read()
        assert server.get("truth")["positions"] == held and len(server.get("truth")["orders"]) == n   # protected as before, nothing sent twice
        life.send_signal(signal.SIGTERM)
        assert life.wait(60) == EXIT_OK
        looked = [r.data for r in of_kind(run_dir, "note:reconcile") if r.data["starting"]]
        assert len(looked) == 2 and not any(x["differences"] for x in looked) and len(held) == 2
        same_as_venue(run_dir, server)


def test_the_day_ends_at_midnight_utc_and_nothing_stays(tmp_path: Path) -> None:
    """Trading goes on around midnight; the session's day does not, so it leaves what it holds, and the market is there to leave into."""
    whole = leaning(900, 5)
    rows = whole.rows.copy()
    rows["ts"] -= 600 * 10**9
    rows["recv"] -= 600 * 10**9
    tape = make_tape(rows, whole.universe)
    cfg = conf(tape, 890, **{"risk.avoid_last_minutes": 0, "exits.time_stop_s": 0.0, "strategy.exit_on_opposite": False, "exits.stop_pct": 0.05,
                             "exits.target_pct": 0.5})
    run_dir = folder(tmp_path, cfg)
    with venue(tape, 15.0) as server:
        assert run_session(cfg, run_dir) == EXIT_OK
        same_as_venue(run_dir, server)
        sold = [e for e in server.get("truth")["executions"] if e["side"] < 0]
    midnight = int(datetime(2026, 11, 19, tzinfo=UTC).timestamp()) * 10**9
    assert sold and all(e["ts"] >= midnight for e in sold)                # held to the last moment of the day, then sold at once
    assert all(e["ts"] < midnight + 60 * 10**9 for e in sold) and of_kind(run_dir, "run:begin")[0]["day"] == "2026-11-18"
    assert [t.data["reason"] for t in of_kind(run_dir, "note:round_trip")] == ["flatten"] * len(of_kind(run_dir, "note:round_trip"))


@pytest.mark.slow
def test_the_shipped_configuration_on_recorded_books(tmp_path: Path) -> None:
    """Binance's BTC and ETH of 2024-08-08, 23:54 to midnight UTC, re-told through the practice venue, headless by papermill."""
    files = [realdata(f"lob_crypto/{name}") for name in ("binance_usdm_btcusdt_20240808.gz", "binance_spot_ethusdt_20240808.gz")]
    tape = joined_tapes([recording_tape(f, "CRYPTO") for f in files])
    params = yaml.safe_load((ROOT / "nbs/live/alpaca_crypto.yaml").read_text(encoding="utf-8"))
    end = datetime.fromtimestamp(int(tape.rows["ts"][0]) / 1e9 + 300, UTC)
    speed = 5.0
    params |= {"venue": {"broker": "alpaca_practice", "alpaca": {"feed": {"batch_gap_s": 0.05, "silence_s": 300.0}}},
               "symbols": ["BTC/USD", "ETH/USD"], "universe": str(ROOT / "data/crypto_pairs.csv"), "until": end.isoformat(),
               "risk": {**params["risk"], "avoid_last_minutes": 0},     # the recording is of the day's last minutes
               "health": {"max_lag_ms": 20_000, "stale_ms": 20_000, "connection_stale_ms": 20_000},
               "session": {**params["session"], "drain_timeout_s": 100.0}}
    early = int(tape.rows["ts"][0]) - int(45 * speed * 1e9)   # the notebook has so long to start before the market does
    with venue(tape, speed, start=early) as server:
        status, out = finish(papermill(tmp_path, params), 300)
        assert status == 0, out[-3000:]
        same_as_venue(tmp_path / "run", server, "paper")
    run = load_run(tmp_path / "run")
    assert run.end and run.end["flat"] and run.begin["fallback"] == "" and len(run.round_trips) >= 3
    assert run.zone == "UTC" and (tmp_path / "run/live_trading.ipynb").exists()
    again = replay_run(tmp_path / "run")
    assert again.ok, again.first


# ---- what is refused before anything is sent

@pytest.mark.parametrize(("over", "words"), [
    ({"data.symbols": ["AAA/USD", "AAPL"]}, "stocks, or crypto pairs"),
    ({"data.symbols": ["AAA/BTC"]}, "a base and USD"),
    ({"data.symbols": ["AAPL"]}, "the US market"),
    ({"data.symbols": ["AAPL"], "venue.alpaca.feed": {"source": "crypto"}}, "with stocks such as AAPL"),
    ({"data.symbols": ["AAA/USD"], "venue.alpaca.feed": {"source": "iex"}}, "it follows from the symbols"),
    ({"data.symbols": ["ZZZ/USD"]}, "unknown"),
    ({"exits.entry_slip_pct": 0.0005, "exits.entry_chases": 1}, "immediate-or-cancel"),
    ({"exits.mode": "oco"}, "links no crypto orders"),
    ({"venue.plan": "tier2_maker"}, "entries take liquidity"),
    ({"venue.plan": "gold"}, "tier2, tier2_maker"),
])
def test_a_session_that_cannot_work_does_not_begin(over: dict[str, Any], words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tape = leaning(120)
    cfg = conf(tape, 100, **over)
    with venue(tape, 1.0) as server:
        assert run_session(cfg, folder(tmp_path, cfg)) == EXIT_CONFIG
        assert server.get("truth")["orders"] == []
    assert words in capfd.readouterr().err


def test_a_pair_at_the_stock_venue_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    stocks = walk_tape(("AAPL",), 120)
    cfg = conf(leaning(120), 100)
    with venue(stocks, 1.0): assert run_session(cfg, folder(tmp_path, cfg)) == EXIT_CONFIG
    assert "unknown" in capfd.readouterr().err


def test_the_broker_refuses_what_alpaca_would(tmp_path: Path) -> None:
    tape = leaning(120)
    with venue(tape, 1.0) as server:
        v = open_venue(conf(tape, 100))
        try:
            assert v.broker is not None and v.pace is not None and v.market.universe[0].qty_step == "0.000000001"
            v.broker.connect(v.pace.now())
            until(lambda: len(v.broker._assets) == 2, "assets")  # type: ignore[union-attr]
            def refusal(i: str, **kw: Any) -> str:
                base = dict(id=i, ts=0, seq=0, account="test", strategy="hand", symbol="AAA/USD", sym=0, side=Side.BUY, purpose=Purpose.ENTRY,
                            qty=D(1), type=OrderType.LIMIT, limit=D("90.00"), stop=None, tif=Tif.IOC, ref_px=D(100))
                assert v.broker is not None and v.pace is not None
                v.broker.submit(Intent(**{**base, **kw}), v.pace.now())
                got = until(lambda: v.broker.poll(v.pace.now()), "an answer")  # type: ignore[union-attr]
                assert got[0].kind is UpdateKind.REJECT and got[0].text
                return str(got[0].reason)
            assert refusal("a", tif=Tif.DAY) == "tif" and refusal("b", side=Side.SELL) == "short_sale"
            assert refusal("c", limit=D("90.001")) == "tick" and refusal("d", qty=D("0.00001")) == "min_qty"
            assert refusal("e", qty=D("0.1234567891")) in ("lot", "fractional")
            assert refusal("f", type=OrderType.STOP, limit=None, stop=D(95), tif=Tif.GTC) == "crypto"
            assert refusal("g", qty=D("0.05")) == "min_value"                      # the venue's own word: five dollars
            assert server.get("truth")["orders"] == []
            assert refusal("h", side=Side.SELL, purpose=Purpose.EXIT) == "insufficient_qty"
            server.post("fault", fault="clock_skew", args={"seconds": 30.0, "skew": 3.0})
            assert refusal("i") == "clock_skew" and server.get("truth")["orders"] == []   # its clock is asked before every entry, here too
        finally: shut(v)


def test_more_pairs_than_books_is_told(tmp_path: Path) -> None:
    tape = leaning(1800, n=11)
    cfg = conf(tape, 1700)
    run_dir = folder(tmp_path, cfg)
    def said() -> list[str]: return [r.data["text"] for r in journal(run_dir, "note:alert") if r.data["code"] == "uncovered"]
    def polled() -> bool: return bool(np.isin(10, recorded_rows(run_dir)["sym"]))   # the eleventh book comes by request
    with venue(tape, 20.0), ended_when(run_dir, lambda: said() and polled(), "the eleventh pair"): assert run_session(cfg, run_dir) == EXIT_OK
    assert "books and trades of 10 symbols; KKK/USD" in said()[0]


def test_a_restart_after_midnight_counts_new_fees() -> None:
    days = [fees_for("alpaca", "CRYPTO", date(2026, 11, d)) for d in (20, 21)]
    ledger = FeeLedger(days[0])
    charge(ledger, "a", Side.BUY, D("0.1"), D(60_000))
    assert ledger_of(days[0], ledger.snapshot()).total == 15 and ledger_of(days[1], ledger.snapshot()).total == 0
    other = fees_for("alpaca", "CRYPTO", date(2026, 11, 21), plan="tier2")
    with pytest.raises(ScalpError, match="another schedule"): ledger_of(other, ledger.snapshot())
    stocks = [fees_for("alpaca", "US", date(2026, 11, d)) for d in (19, 20)]
    with pytest.raises(ScalpError, match="another schedule"): ledger_of(stocks[1], FeeLedger(stocks[0]).snapshot())


def test_rules_of_a_day_without_rows_and_a_wrong_number_in_the_universe(tmp_path: Path) -> None:
    with pytest.raises(ScalpError, match="no rule table"): rules_for("alpaca", "CRYPTO", date(2022, 1, 1))
    assert len(load_universe(ROOT / "data/crypto_pairs.csv")) == 10
    bad = tmp_path / "bad.csv"
    bad.write_text("symbol,venue,qty_step\nBTC/USD,CRYPTO,zero\n")
    with pytest.raises(ScalpError, match="qty_step"): load_universe(bad)
