"""Angel One's minute candles through the real SDK: what arrives, what is refused, how long it may take, and a strategy that starts warm with them."""
from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from alpaca_live import begun, folder, journal, of_kind, until

pytest.importorskip("pyotp")

from angel_fake import LOGIN as FAKE_LOGIN  # noqa: E402
from angel_fake import START, Fake, bad, gate, good  # noqa: E402
from angel_fake import config as fake_config  # noqa: E402
from angel_live import drawn_tape, opens, venue, wire  # noqa: E402
from test_broker_angel import config, login_of  # noqa: E402

from scalp_nb.broker.angel_history import Candles  # noqa: E402
from scalp_nb.broker.angel_sdk import AngelSession  # noqa: E402
from scalp_nb.feed.bars import BAR, MINUTE, Bars  # noqa: E402
from scalp_nb.feed.calendar import session_for  # noqa: E402
from scalp_nb.feed.instrument import Instrument, Universe  # noqa: E402
from scalp_nb.feed.universe import load_universe  # noqa: E402
from scalp_nb.live.notebook import plan_run  # noqa: E402
from scalp_nb.order.types import Purpose  # noqa: E402
from scalp_nb.practice.angel_one import AngelServer  # noqa: E402
from scalp_nb.practice.angel_orders import AngelTerms  # noqa: E402
from scalp_nb.practice.faults import read_script  # noqa: E402
from scalp_nb.practice.venue import Tape, make_tape  # noqa: E402
from scalp_nb.strategy.barplan import history_bars  # noqa: E402
from scalp_nb.trader.config import load_config  # noqa: E402
from scalp_nb.trader.replay import replay_run  # noqa: E402
from scalp_nb.trader.session import EXIT_OK, run_session  # noqa: E402
from scalp_nb.trader.setup import RunConfig  # noqa: E402

pytestmark = pytest.mark.usefixtures("restore_signals")
ROOT = Path(__file__).parents[1]
FRIDAY, THURSDAY = date(2026, 11, 20), date(2026, 11, 19)
EXACT = ["ts", "sym", "open", "high", "low", "close", "volume"]


def minutes(day: date, first: int, last: int, syms: int = 1, px: float = 500.0, step: float = 0.05) -> Bars:
    "Minute bars of a day, falling a little."
    at, n = session_for("NSE", day).open_ts, last - first
    out = np.zeros(n * syms, BAR)
    out["ts"], out["sym"] = np.repeat(at + MINUTE * np.arange(first, last), syms), np.tile(np.arange(syms), n)
    close = px + 40.0 * out["sym"] - step * ((out["ts"] - at) // MINUTE)
    for k, v in (("open", close + step), ("high", close + 2 * step), ("low", close - step), ("close", close)): out[k] = v
    out["volume"], out["vwap"] = 100 + out["sym"], np.nan
    for k in ("open", "high", "low", "close"): out[k] = out[k].round(2)
    return np.sort(out, order=("ts", "sym"))


def tape_of(syms: int, history: Bars, start_s: int = 3600, seconds: int = 120, day: date = FRIDAY) -> Tape:
    "A quiet market whose past is known."
    t = drawn_tape(np.full((seconds, syms), 10_000) + 800 * np.arange(syms), 0.5, day=day, start_s=start_s)
    return make_tape(t.rows, t.universe, history=history)


@contextmanager
def asking(tape: Tape, speed: float = 60.0, wait_s: float = 5.0, faults: Any = (), **over: Any) -> Iterator[tuple[AngelServer, Candles]]:
    "A venue and somebody who asks it for candles."
    with AngelServer(tape, AngelTerms(), speed, script=read_script(faults)) as server:
        cfg = config(server.url, **{"attempts": 3, **over})
        def clock() -> int: return server.api.desk.clock.now()
        s = AngelSession(cfg, login_of(server.terms), clock)
        s.open()
        try: yield server, Candles(tape.universe, cfg, s, clock, wait_s)
        finally: s.close()


def now_of(server: AngelServer) -> int: return int(server.api.desk.clock.now())


def asked(server: AngelServer) -> int: return len(server.api.hits.get("getCandleData", ()))


# ---- what arrives

def test_minutes_of_today_and_of_the_days_before_a_holiday():
    """Wednesday after a Tuesday without trading: the minutes before are Monday's, to the paisa."""
    wednesday = date(2026, 11, 25)
    past = np.concatenate([minutes(date(2026, 11, 23), 0, 375, 2), minutes(wednesday, 0, 20, 2)])
    with asking(tape_of(2, past, 1200, day=wednesday)) as (server, c):
        got = c.history(50, now_of(server))
        assert c.told() == "" and got.dtype == BAR and np.isnan(got["vwap"]).all() and not got["flags"].any()
        assert asked(server) == 2
    want = np.concatenate([past[past["sym"] == s][:360][-30:] for s in range(2)] + [past[past["ts"] >= opens(wednesday)]])
    want = np.sort(want, order=("ts", "sym"))    # with derivatives: continuous trading ends at 15:15, the auction's minutes are left out
    assert got[EXACT].tolist() == want[EXACT].tolist()


def test_only_closed_minutes_and_only_as_many_as_wanted():
    past = minutes(FRIDAY, 0, 60)
    with asking(tape_of(1, past, 3600), speed=60.0) as (server, c):
        until(lambda: now_of(server) > opens() + 61 * MINUTE, "the first live minute is over", every=0.05)
        now = now_of(server)
        got = c.history(7, now)
        assert len(got) == 7 and (got["ts"] + MINUTE <= now).all() and got["ts"][-1] >= opens() + 60 * MINUTE and (np.diff(got["ts"]) == MINUTE).all()
        before = c.history(7, opens() + 30 * MINUTE + 1)       # what was closed at an earlier moment
        assert before["ts"][-1] == opens() + 29 * MINUTE


# ---- what does not

def test_a_symbol_without_data_takes_nothing_from_the_others():
    past = minutes(FRIDAY, 0, 60, 3)
    with asking(tape_of(3, past[past["sym"] != 1])) as (server, c):
        got = c.history(20, now_of(server))
        assert set(got["sym"].tolist()) == {0, 2} and c.missing == {"SAB": "Angel One has no candles"}
        unknown = Universe("wrong", (c.universe[0], Instrument("XYZ", "NSE", "999999"), Instrument("NEW", "NSE")))
        d = Candles(unknown, c.cfg, c.session, c._clock, 5.0)
        assert set(d.history(5, now_of(server))["sym"].tolist()) == {0}
        assert "AB1004" in d.missing["XYZ"] and d.missing["NEW"] == "NEW: no token"


@pytest.mark.parametrize(("fault", "args"), [("http_429", {}), ("http_5xx", {}), ("http_html", {}), ("http_cut", {}), ("body_malformed", {}),
                                             ("string_false", {})])
def test_what_may_be_asked_again_is(fault, args):
    """Twice in a row, in the shapes Angel One fails in."""
    past = minutes(FRIDAY, 0, 60, 2)
    with asking(tape_of(2, past), faults=[{"fault": fault, "match": "getCandleData", "times": 2, "args": args}]) as (server, c):
        got = c.history(10, now_of(server))
        assert len(server.get("faults")) == 2
        assert c.missing == {} and len(got) == 20


def test_no_more_is_asked_than_angel_one_allows():
    """Eight symbols at the limit of three a second, by the venue's clock; somebody else using the account at the same time makes it refuse some."""
    n = 8
    with asking(tape_of(n, minutes(FRIDAY, 0, 60, n), seconds=600), speed=4.0, history_per_s=2) as (server, c):
        t0 = now_of(server)
        got = c.history(5, t0)
        assert len(got) == 5 * n and c.missing == {} and now_of(server) - t0 > 3 * 10**9
        assert [e for e in server.get("events") if e.get("status") == 403] == []
        other = Candles(c.universe, c.cfg, c.session, c._clock, 5.0)
        rival = threading.Thread(target=lambda: other.history(5, t0))
        rival.start()
        assert len(c.history(5, t0)) == 5 * n and c.missing == {}
        rival.join()
        assert other.missing == {}


def test_the_time_is_bounded_and_the_missing_are_named():
    """One request never answers within the time: the others' bars come, and the wait ends when it should."""
    past = minutes(FRIDAY, 0, 60, 6)
    slow = [{"fault": "http_slow", "match": "getCandleData", "nth": 1, "args": {"seconds": 1.5}}]
    with asking(tape_of(6, past), wait_s=0.8, faults=slow) as (server, c):
        t0 = time.monotonic()
        got = c.history(5, now_of(server))
        took = time.monotonic() - t0
        assert took < 1.3 and len(c.missing) == 1 and set(c.missing.values()) == {"no answer within 0.8 s"}
        assert len(got) == 25
    with asking(tape_of(6, past), speed=1.0, wait_s=1.2, history_per_s=1) as (server, c):
        t0 = time.monotonic()
        got = c.history(5, now_of(server), ("SAF", "SAA", "SAB", "SAC"))
        assert time.monotonic() - t0 < 1.8 and 5 in got["sym"] and len(c.missing) >= 2 and "SAF" not in c.missing


def test_nothing_is_asked_when_nobody_is_logged_in():
    with asking(tape_of(1, minutes(FRIDAY, 0, 60))) as (server, c):
        c.session.close()
        assert len(c.history(5, now_of(server))) == 0 and "closing" in c.told() and asked(server) == 0


# ---- shapes of an answer

def bar(minute: int, px: float = 100.0, day: str = "2026-11-19") -> list[Any]:
    return [f"{day}T{9 + (15 + minute) // 60:02d}:{(15 + minute) % 60:02d}:00+05:30", px, px + 1, px - 1, px, 10]


@pytest.mark.parametrize(("answer", "closes", "said"), [
    (good([bar(100), bar(98), bar(99), bar(99, 105.0)]), [100, 105, 100], ""),                       # unsorted, twice: the last given
    (good([bar(103), bar(104, 107.0), bar(105)]), [100, 107], ""),                                   # at 11:00:00 the minute of 11:00 is running
    (good([["2026-11-19T09:07:00+05:30", 1, 1, 1, 1, 1], bar(3), ["x"], None, bar(4, 0.0)]), [100], "AAA: 3 rows were no candles"),
    (good([]), [], "AAA: Angel One has no candles"),
    (good(None), [], "AAA: Angel One has no candles"),
    (bad("AB9019", "No Data Available"), [], "AAA: Angel One has no candles"),
    (good({"candles": []}), [], "AAA: Angel One: candles as dict"),
    (bad("AB1013", "gone"), [], "AAA: Angel One: AB1013 gone"),
    (bad("AB1004", "Something Went Wrong"), [], "AAA: Angel One: AB1004 Something Went Wrong"),
    ((200, b'{"status":"false","message":"no","errorcode":"AB1004","data":null}'), [], "AAA: Angel One: AB1004 no"),
    ((502, b"<html>bad gateway</html>"), [], "AAA: Angel One answered HTTP 502: <html>bad gateway</html>"),
    (gate("AG8001"), [], "AAA: Angel One: AG8001 Invalid Token"),
])
def test_shapes(answer, closes, said):
    f, one = Fake(), Universe("one", (Instrument("AAA", "NSE", "900001"),))
    f.routes["getCandleData"] = lambda body, token: answer
    s = AngelSession(fake_config(f, attempts=2), FAKE_LOGIN, lambda: START)
    try:
        s.open()
        c = Candles(one, s.cfg, s, time.time_ns, 5.0)
        got = c.history(10, START)
        assert (got["close"].tolist(), c.told()) == (closes, said)
        path, body, _ = next(x for x in f.asked if "getCandleData" in x[0])
        assert path == "/rest/secure/angelbroking/historical/v1/getCandleData"
        assert body == {"exchange": "NSE", "symboltoken": "900001", "interval": "ONE_MINUTE",
                        "fromdate": "2026-11-19 09:15", "todate": "2026-11-19 11:00"}
    finally:
        s.close()
        f.server.shutdown()


# ---- a session

def waves(seconds: int, syms: int = 3) -> Tape:
    "Prices that cross their averages every four minutes; yesterday fell."
    mid = np.round(10_000 + 800 * np.arange(syms) + 80 * np.sin(2 * np.pi * np.arange(seconds) / 480)[:, None]).astype(int)
    t = drawn_tape(mid, 0.5)
    return make_tape(t.rows, t.universe, history=minutes(THURSDAY, 0, 375, syms, 505.0, 0.02))


def sma(tape: Tape, speed: float, **over: Any) -> RunConfig:
    "The crossover of 5 and 15 minutes, on bars built from the depth."
    base = {"venue.broker": "angel_practice", "run.account": "test", "data.symbols": list(tape.universe.symbols), "sizing.mode": "fixed",
            "sizing.fixed_qty": 7, "strategy": {"name": "sma_crossover", "bars_from": "rows", "params": {"fast_period": 5, "slow_period": 15}},
            "exits.stop_pct": 0.05, "exits.target_pct": 0.5, "risk.avoid_first_minutes": 0}
    return load_config(RunConfig, None, base | wire(speed) | over)


def entries(run_dir: Path) -> list[int]:
    "When entries were sent, ns."
    return [c.intent.ts for c in journal(run_dir, "command:Submit") if c.intent.purpose is Purpose.ENTRY]


def test_an_average_of_minutes_starts_warm_and_again_after_a_kill(tmp_path):
    """It trades long before its fifteen minutes have passed here. Killed and begun again it has its bars from the store and asks once a symbol for
    the minutes it missed, in a small part of the time it may take."""
    tape, speed = waves(10_800), 50.0
    cfg = sma(tape, speed)
    run_dir, starts = folder(tmp_path, cfg), list[float]()
    with venue(tape, speed) as server:
        for lives in (1, 2):
            t0, life = time.monotonic(), begun(run_dir, cfg)
            until(lambda life=life, n=lives: life.poll() is not None or len(journal(run_dir, "note:warm_up")) == n, "warm", 90, every=0.2)
            starts.append(time.monotonic() - t0)
            if lives == 1: until(lambda life=life: life.poll() is not None or entries(run_dir), "an entry", 90, every=0.2)
            assert life.poll() is None and asked(server) == 3 * lives, life.stderr and life.stderr.read()
            life.send_signal(signal.SIGKILL if lives == 1 else signal.SIGTERM)
            assert life.wait(60) == (-signal.SIGKILL if lives == 1 else EXIT_OK)
        assert server.get("truth")["positions"] == {}
        spans = [np.ptp([t for t in server.api.hits["getCandleData"]][3 * k:3 * k + 3]) / 1e9 for k in range(2)]
    said, warm = [x["where"] for x in journal(run_dir, "run:history")], [x.data for x in journal(run_dir, "note:warm_up")]
    assert said[0] == f"0 bars from the store, {3 * warm[0]['needed']} of 3 symbols asked for"
    assert int(said[1].split()[0]) >= 3 * warm[0]["needed"] and [w["short"] for w in warm] == [[], []]
    assert min(entries(run_dir)) - of_kind(run_dir, "event:Started")[0].ts < 10 * MINUTE
    again = replay_run(run_dir)
    assert again.ok, again.first
    print(f"warm {starts[0]:.1f} s, {starts[1]:.1f} s after the process was begun; candles took {spans} s of the venue's time")


@pytest.mark.soak
def test_a_session_begun_before_the_open_is_warm_at_the_open(tmp_path):
    """The minutes before are yesterday's; the averages cross with the first minute of today."""
    tape, speed = waves(480), 40.0
    cfg = sma(tape, speed, **{"data.end": datetime.fromtimestamp(opens() / 1e9 + 360, UTC)})
    run_dir = folder(tmp_path, cfg)
    with venue(tape, speed, start=opens() - 20 * MINUTE) as server:
        assert run_session(cfg, run_dir) == EXIT_OK
        assert server.get("truth")["positions"] == {} and asked(server) == 3
    assert of_kind(run_dir, "event:Started")[0].ts < opens() and of_kind(run_dir, "note:warm_up")[0].data["short"] == []
    assert opens() + MINUTE < min(entries(run_dir)) < opens() + 4 * MINUTE


def test_the_shipped_configuration_is_a_valid_one():
    cfg = plan_run(yaml.safe_load((ROOT / "nbs/live/angel_sma.yaml").read_text(encoding="utf-8")), here=ROOT).cfg
    assert cfg.venue.broker == "angel_practice" and len(cfg.data.symbols) == 10 and history_bars(cfg.strategy) == 53
    assert {i.symbol for i in load_universe(ROOT / cfg.data.universe).instruments} > set(cfg.data.symbols)
