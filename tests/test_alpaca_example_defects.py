"""The known defects of alpacahq/example-scalping (4d09627), each as a test that this trader passes at the practice venue."""

import threading
from collections import Counter
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from alpaca_live import conf, folder, market, until, venue

pytest.importorskip("alpaca")

from alpaca_faults import HOUSE, config_of, ended, ns, tape_of  # noqa: E402
from fault_checks import positions  # noqa: E402
from fault_runs import Story, broken, play  # noqa: E402

from scalp_nb.feed.bars import BAR, BAR_UPDATED, MINUTE, grid  # noqa: E402
from scalp_nb.feed.calendar import session_for  # noqa: E402
from scalp_nb.feed.depth import depth_row  # noqa: E402
from scalp_nb.feed.rowbars import RowBars  # noqa: E402
from scalp_nb.order.types import TERMINAL, Intent, OrderType, Purpose, Side, Tif, Update, UpdateKind  # noqa: E402
from scalp_nb.practice.alpaca import PracticeServer  # noqa: E402
from scalp_nb.practice.faults import read_script  # noqa: E402
from scalp_nb.practice.venue import walk_tape  # noqa: E402
from scalp_nb.trader.bardesk import BarDesk  # noqa: E402
from scalp_nb.trader.session import EXIT_CONFIG, EXIT_NOT_FLAT, EXIT_OK, run_session  # noqa: E402
from scalp_nb.trader.venues import open_venue, shut  # noqa: E402

WIDE = {"exits.mode": "venue_stop", "exits.stop_pct": 0.02, "exits.target_pct": 0.05, "exits.time_stop_s": 0.0}


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    "A session whose updates get lost, whose orders are turned down, whose venue is away for a while; entries are filled in parts."
    tape = tape_of(11)
    script = read_script([{"fault": "update_lost", "match": "^(fill|partial_fill)", "nth": n} for n in (2, 5, 9)]
                         + [{"fault": "http_429", "match": "POST /v2/orders", "nth": n} for n in (2, 5, 9, 14, 20)]
                         + [{"fault": "cancel_late"}, {"fault": "rest_down", "at": 90.0, "args": {"seconds": 15.0}}])
    cfg = config_of(0, tape, **WIDE, **{"risk.max_consecutive_failures": 50})
    return play(HOUSE, tmp_path_factory.mktemp("defects"), cfg, tape, script, {"partial_prob": 0.5})


HALF_DAY = date(2026, 11, 27)


@pytest.fixture(scope="module")
def half_day(tmp_path_factory: pytest.TempPathFactory) -> Story:
    "The last twenty minutes of the day after Thanksgiving; positions are held until they must go."
    close, seconds = session_for("US", HALF_DAY).close_ts, int(3.5 * 3600)
    tape = walk_tape(("X", "Y"), seconds, 3, day=HALF_DAY)
    lean = np.repeat(np.random.default_rng(2).choice([0.15, 0.85], seconds // 20), 20)
    rows = tape.rows.copy()
    rows["bid_qty"][:, 0], rows["ask_qty"][:, 0] = np.repeat(1000 * lean, 2), np.repeat(1000 * (1 - lean), 2)
    cfg = config_of(0, replace(tape, rows=rows), **WIDE, **{"data.end": None, "strategy.exit_on_opposite": False})
    return play(HOUSE, tmp_path_factory.mktemp("half_day"), cfg, replace(tape, rows=rows), start=close - 20 * 60 * 10**9)


def purposes(s: Story) -> dict[str, Any]: return {r.data.intent.id: r.data.intent for r in s.of("command:Submit")}


def test_1_a_start_that_fails_ends_and_says_why(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    "`while 1: try ... except: pass`: it would try for ever, in silence."
    tape = market(n=2, minutes=2)
    with venue(tape, 1.0) as server:
        cfg = conf(tape, 1.0, **{"venue.alpaca.url": "http://127.0.0.1:1", "venue.alpaca.speed": 1.0})
        assert run_session(cfg, folder(tmp_path, cfg)) == EXIT_CONFIG   # it returns, and says so
        assert server.get("truth")["orders"] == []
    assert "clock from Alpaca" in capfd.readouterr().err


def test_2_the_resting_exit_is_gone_before_the_end_sells(half_day: Story) -> None:
    "A sale beside a resting sale of the same shares is refused (403), at 15:55 and for ever."
    mine, out = purposes(half_day), [r for r in half_day.of("note:exit") if r.data["reason"] == "square_off"]
    assert out
    for r in out:
        orders = [o for o in half_day.truth["orders"] if o["symbol"] == r.data["symbol"] and ended(o) >= r.ts]
        resting = [o for o in orders if mine[o["client_order_id"]].purpose is Purpose.STOP]
        assert resting and all(o["status"] == "canceled" for o in resting)
        assert [o for o in orders if o["status"] == "filled" and ns(o["submitted_at"]) >= max(ended(x) for x in resting)]
    assert not [r for r in half_day.of("note:order") if r.data["state"] == "rejected"]
    assert half_day.status == EXIT_OK and half_day.truth["positions"] == {}


def test_3_an_exit_is_on_the_tick_and_a_refused_one_is_sent_again(story: Story) -> None:
    "`avg_entry + 0.01` is often no whole cent and refused; nothing tried again, and the position stayed naked until 15:55."
    averages = [Decimal(o["filled_avg_price"]) for o in story.truth["orders"] if o["filled_avg_price"]]
    assert any(a != round(a, 2) for a in averages), "no average price between two cents"
    prices = [Decimal(o[k]) for o in story.truth["orders"] for k in ("limit_price", "stop_price") if o[k]]
    assert prices and all(p == round(p, 2) for p in prices)
    mine = purposes(story)
    turned_down = [r for r in story.of("note:order") if r.data["state"] == "rejected" and r.data["purpose"] != "entry"]
    assert turned_down, "no exit was refused"
    for r in turned_down:
        again = [i for i in mine.values() if i.symbol == r.data["symbol"] and i.purpose is not Purpose.ENTRY and i.ts >= r.ts]
        assert again and again[0].ts - r.ts <= 60 * 10**9


def order(i: str, symbol: str, qty: int, limit: str | None = None, side: Side = Side.BUY) -> Intent:
    kind, px = OrderType.MARKET if limit is None else OrderType.LIMIT, Decimal(limit) if limit else None
    return Intent(i, 0, 0, "test", "hand", symbol, 0, side, Purpose.ENTRY, Decimal(qty), kind, px, None, Tif.DAY, px or Decimal(100))


class Account:
    "A broker at a venue in real time, and what it said."
    def __init__(self, server: PracticeServer, tape: Any) -> None:
        self.server, self.v, self.said = server, open_venue(conf(tape, 1.0)), list[Update]()
        self.now = self.v.pace.now  # type: ignore[union-attr]
        self.b: Any = self.v.broker
        self.b.connect(self.now())

    def hear(self, client_id: str, *kinds: UpdateKind) -> Update:
        def found() -> list[Update]:
            self.said.extend(self.b.poll(self.now()))
            return [u for u in self.said if u.client_id == client_id and u.kind in kinds]
        return until(found, f"{kinds} of {client_id}", 15)[0]


def test_4_every_way_an_order_can_end_ends_it(tmp_path: Path) -> None:
    "expired, done_for_day, replaced and a refused cancel were unhandled: *_SUBMITTED for ever."
    tape = market(n=2, minutes=2)
    with venue(tape, 1.0) as server:
        a = Account(server, tape)
        try:
            for i in ("replaced", "expires"): a.b.submit(order(i, "ABA", 5, "50.00"), a.now())
            for i in ("replaced", "expires"): a.hear(i, UpdateKind.ACK)
            venue_id = next(o["id"] for o in server.get("truth")["orders"] if o["client_order_id"] == "replaced")
            keys = {"APCA-API-KEY-ID": server.terms.key, "APCA-API-SECRET-KEY": server.terms.secret}
            httpx.patch(f"{server.url}/v2/orders/{venue_id}", json={"limit_price": "49.00"}, headers=keys).raise_for_status()
            assert a.hear("replaced", UpdateKind.CANCELED).reason == "replaced"
            a.b.submit(order("filled", "ABB", 5), a.now())
            a.hear("filled", UpdateKind.FILL)
            a.b.cancel("filled", a.now())
            assert a.hear("filled", UpdateKind.CANCEL_REJECTED).reason == "not_cancelable"
            server.step(7 * 3600)
            a.hear("expires", UpdateKind.EXPIRED)
            assert all(a.b._known[i].state in TERMINAL for i in ("replaced", "expires", "filled"))
        finally: shut(a.v)


def test_5_lost_updates_are_found_by_comparing(story: Story) -> None:
    "One lost event left the state machine wrong for the rest of the day."
    lost = [f for f in story.faults if f["fault"] == "update_lost"]
    assert len(lost) >= 2
    assert broken(story) == []
    assert len(story.of("note:fill")) == len(story.truth["executions"]) > 10


def test_6_somebody_elses_order_is_not_taken_for_ours(tmp_path: Path) -> None:
    "Updates were matched by symbol: a manual order moved the bot's state."
    tape = tape_of(3)
    def by_hand(server: PracticeServer) -> None:
        def go() -> None:
            until(lambda: server.api.orders.tickets, "an order of the trader's", 60)
            keys = {"APCA-API-KEY-ID": server.terms.key, "APCA-API-SECRET-KEY": server.terms.secret}
            body = {"symbol": "Z", "qty": "7", "side": "buy", "type": "market", "time_in_force": "day", "client_order_id": "by-hand"}
            httpx.post(f"{server.url}/v2/orders", json=body, headers=keys).raise_for_status()
        threading.Thread(target=go, daemon=True).start()
    s = play(HOUSE, tmp_path, config_of(0, tape, **{"exits.target_pct": 0.001}), tape, beside=by_hand)
    assert not [r for r in s.of("note:fill") if r.data["id"] == "by-hand"] and "by-hand" not in purposes(s)
    theirs = {o["id"] for o in s.truth["orders"] if o["client_order_id"] == "by-hand"}
    ours = Counter((e["symbol"], Decimal(e["qty"]), Decimal(e["px"])) for e in s.truth["executions"] if e["order"].partition("#")[0] not in theirs)
    assert ours == Counter((r.data["symbol"], Decimal(r.data["qty"]), Decimal(r.data["px"])) for r in s.of("note:fill"))
    trips = [r for r in s.of("note:trip") if r.data["breaker"] == "reconcile"]
    assert trips and "another program or a person trades here" in trips[0].data["reason"]
    assert not [i for i in purposes(s).values() if i.purpose is Purpose.ENTRY and i.ts > trips[0].ts]
    assert s.status == EXIT_NOT_FLAT and s.truth["positions"] == {"Z": "7"}


def test_7_an_error_of_the_venue_does_not_end_the_trader(story: Story) -> None:
    "Cancelling a filled order, or any REST error, ended the process with positions open."
    down = [e for e in story.events if e["kind"] == "fault" and e["fault"] == "rest_down"][0]["ts"]
    held = [1 for s in story.tape.universe.symbols for a, b in positions(story.truth["executions"], s) if a < down < b]
    assert held, "nothing was held when REST went away"
    assert any(r.ts > down + 30 * 10**9 for r in story.of("command:Submit"))
    assert story.status == EXIT_OK and story.of("run:end")[0].data["flat"]


def test_8_a_slow_answer_for_one_symbol_holds_up_no_other(tmp_path: Path) -> None:
    "REST calls in the handlers blocked every symbol."
    tape = market(n=2, minutes=2)
    script = read_script([{"fault": "http_slow", "match": "POST /v2/orders", "nth": 1, "args": {"seconds": 4.0}}])
    with venue(tape, 1.0, script=script) as server:
        a = Account(server, tape)
        try:
            a.b.submit(order("slow", "ABA", 5), a.now())
            until(lambda: server.get("faults"), "the slow request")
            a.b.submit(order("quick", "ABB", 5), a.now())
            a.hear("quick", UpdateKind.FILL)
            assert not [u for u in a.said if u.client_id == "slow" and u.kind is UpdateKind.FILL]
            a.hear("slow", UpdateKind.FILL)
        finally: shut(a.v)


def test_9_stops_ids_caps_and_sizes(tmp_path: Path, story: Story) -> None:
    "No stop-loss, no client_order_id, no cap on the day's loss or the position, and a quantity that could be 0."
    mine = purposes(story)
    assert all(o["client_order_id"] in mine and Decimal(o["qty"]) >= 1 for o in story.truth["orders"])
    filled = {r.data["id"] for r in story.of("note:fill") if r.data["purpose"] == "entry"}
    stopped = {i.parent for i in mine.values() if i.purpose is Purpose.STOP}
    assert len(filled & stopped) >= 3
    tape = tape_of(5)
    cfg = config_of(0, tape, **{"risk.max_daily_loss_pct": 0.00003, "risk.max_concurrent_positions": 2})
    s = play(HOUSE, tmp_path, cfg, tape)
    trip = next(r for r in s.of("note:trip") if r.data["breaker"] == "daily_loss")
    assert not [i for i in purposes(s).values() if i.purpose is Purpose.ENTRY and i.ts > trip.ts]
    assert s.truth["positions"] == {} and max(len(r.data.broker.positions) for r in s.of("event:Reconciled")) <= 2
    soon = datetime.fromtimestamp(int(tape.rows["ts"][0]) / 1e9 + 60, UTC)
    nothing = config_of(0, tape, **{"sizing": {"mode": "percent", "balance_pct": 0.0005}, "data.end": soon})
    s = play(HOUSE, tmp_path / "small", nothing, tape)
    assert s.truth["orders"] == [] and {r.data["code"] for r in s.of("note:refusal")} == {"size_zero"}


def test_10_a_half_day_ends_flat_before_its_own_close(half_day: Story) -> None:
    "15:55 was written into the program: on a half-day it ended with positions open."
    close = session_for("US", HALF_DAY).close_ts
    assert f"{datetime.fromtimestamp(close / 1e9, UTC):%H:%M}" == "18:00"   # 13:00 in New York
    last = max(int(e["ts"]) for e in half_day.truth["executions"])
    entries = [i.ts for i in purposes(half_day).values() if i.purpose is Purpose.ENTRY]
    assert entries and max(entries) < close - 15 * 60 * 10**9
    assert close - 301 * 10**9 < last < close - 200 * 10**9
    assert half_day.status == EXIT_OK and half_day.truth["positions"] == {}


def test_11_minutes_are_minutes_and_corrections_count() -> None:
    "Bars were counted: on IEX a minute without trades is missing, and twenty bars are not twenty minutes; corrected bars were ignored."
    session = session_for("US", date(2026, 11, 19))
    bars = RowBars(grid(MINUTE, [session]), 1, "mid", allow_late=0)
    for k in range(30):   # one quote in the middle of each minute, no trade at all
        bars.take(depth_row(session.open_ts + k * MINUTE + MINUTE // 2, 0, [(100 + k / 100, 100)], [(100.02 + k / 100, 100)], ltp=100.0, volume=5.0))
    got = bars.close(session.open_ts + 30 * MINUTE)
    assert np.diff(got["ts"]).tolist() == [MINUTE] * 29 and len(got) == 30
    plan = conf(market(n=1, minutes=2)).strategy
    def pushed(late: float | None) -> list[float]:
        desk, past = BarDesk(plan, 1, (session,)), np.zeros(20, BAR)
        past["ts"], past["volume"], past["trades"] = session.open_ts + np.arange(20) * MINUTE, 100, 5
        for f in ("open", "high", "low", "close", "vwap"): past[f] = 100 + np.arange(20) % 3
        list(desk.push(past))
        if late is not None:
            again = past[-1:].copy()
            again["flags"], again["close"], again["high"] = BAR_UPDATED, late, late
            list(desk.push(again))
        run = desk.runs[0]
        return [float(v) for s in run._now.streams for v in s.push(past[-1])]
    assert pushed(None) != pushed(110.0)
