"""Strategies on bars inside the trader: same bars, same signals, same decisions whatever the cut, the restart or the source of the bars."""

from datetime import date
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markets import DAY, notes, run_all, said, synthetic
from realdata import realdata
from test_trader_crash import life

from scalp_nb.feed.barfiles import load_bars
from scalp_nb.feed.barmarket import depth_of_bars
from scalp_nb.feed.bars import BAR, BAR_PARTIAL, BAR_UPDATED, BAR_VOID, MINUTE, build_bars, grid, latest, resample
from scalp_nb.feed.calendar import session_for
from scalp_nb.feed.errors import ConfigError
from scalp_nb.feed.importers import seen_capabilities
from scalp_nb.feed.instrument import Instrument, Universe
from scalp_nb.feed.recorder import write_parquet
from scalp_nb.order.types import Purpose
from scalp_nb.strategy.barplan import legs
from scalp_nb.strategy.combine import IDLE, CombineParams, Member, combine_signals
from scalp_nb.strategy.protocol import SIGNAL, signals
from scalp_nb.trader.config import InvalidConfig, load_config
from scalp_nb.trader.core import snapshot
from scalp_nb.trader.events import BarClosed, Clock, Control, Note, Submit, bar_rows
from scalp_nb.trader.journal import decode, dumps, encode
from scalp_nb.trader.replay import replay_run
from scalp_nb.trader.runner import Memory
from scalp_nb.trader.session import StoreLedger, kept_bars
from scalp_nb.trader.setup import Market, RunConfig, load_market, paper_run
from scalp_nb.trader.store import BARS, Store

SECOND = 1_000_000_000
FREE = {"risk.avoid_first_minutes": 0, "risk.max_trades_per_day": 1000, "risk.max_consecutive_losses": 1000, "exits.time_stop_s": 90.0}
SMA = {"strategy.name": "sma_crossover", "strategy.params.bar_s": 15, "strategy.params.fast_period": 3, "strategy.params.slow_period": 8}


def config(**over):
    return load_config(RunConfig, None, FREE | SMA | over)


def told(runner, kind="bars"):
    """Closed bars as the journal has them, as BAR rows in order of publication."""
    names = runner.trader.setup.universe
    out = [(b[1], *(np.nan if x is None else x for x in b[2:8]), b[8], names.index(b[0]), b[9]) for n in notes(runner, kind) for b in n["bars"]]
    return np.array(out, BAR)


def finished(bars):
    return bars[(bars["flags"] & BAR_PARTIAL) == 0]


def sides(sig):
    return {(int(s["sym"]), int(s["ts"])): int(s["side"]) for s in sig if s["side"]}


def heard(runner):
    names = runner.trader.setup.universe
    return {(names.index(n["symbol"]), n["bar"]): n["side"] for n in notes(runner, "signal") if n["side"]}


def late(rows, seed=1):
    """The same tape as a slow network delivers it: some rows a second or three late."""
    rows = rows.copy()
    rng = np.random.default_rng(seed)
    rows["recv"] = rows["ts"] + rng.choice([0, 10**6, SECOND, 3 * SECOND], len(rows), p=[0.5, 0.3, 0.15, 0.05])
    return rows[np.argsort(rows["recv"], kind="stable")]


@pytest.mark.parametrize("price", ["trades", "mid"])
@pytest.mark.parametrize("delayed", [False, True])
def test_bars_in_the_trader_are_those_of_build_bars(price, delayed):
    rows, uni = synthetic()
    rows = late(rows) if delayed else rows
    r = run_all(config(**{"strategy.price": price}), rows, uni)
    want = finished(build_bars(rows, grid(15 * SECOND, [session_for("NSE", DAY)]), price)[0])
    got = latest(told(r))
    upto = got["ts"].max()
    assert finished(got).tobytes() == want[want["ts"] <= upto].tobytes()
    assert upto >= want["ts"].max() - 60 * SECOND                              # the run ends half a minute before the tape
    assert delayed == bool((told(r)["flags"] & BAR_UPDATED).any())              # rows on the way at a bar's end are waited for


def test_every_entry_signal_of_the_vectorised_run_is_heard_and_no_other():
    rows, uni = synthetic()
    rows["recv"] = rows["ts"]                   # nothing late: no bar is corrected after it was answered
    rows = rows[np.argsort(rows["recv"], kind="stable")]
    r = run_all(config(), rows, uni)
    (s, p), = legs(r.trader.setup.params)
    bars = latest(told(r))
    assert sides(signals(s, p, bars)) == heard(r) != {}
    sent = [c.intent for _, c in said(r) if isinstance(c, Submit) and c.intent.purpose is Purpose.ENTRY]
    free = [n for n in notes(r, "signal") if not n["blocked"]]
    assert len(sent) >= len(free) > 10          # every free signal is traded; further entries turn a position round
    assert {n["blocked"] for n in notes(r, "signal")} <= {"", "held", "resting"}
    assert {x["reason"] for x in notes(r, "round_trip")} >= {"signal", "time"}
    turned = [c for c in notes(r, "signal") if c["blocked"] == "held" and c["side"]]
    assert len(sent) > len(free) and turned


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(1, 5399), min_size=1, max_size=30), st.integers(1, 3), st.booleans())
def test_a_bar_run_says_the_same_however_the_stream_is_cut(cuts, seed, delayed):
    rows, uni = synthetic(seed=seed)
    rows = late(rows, seed) if delayed else rows
    whole, cut = run_all(config(), rows, uni), run_all(config(), rows, uni, cuts)
    assert [(ts, dumps(encode(c))) for ts, c in said(whole)] == [(ts, dumps(encode(c))) for ts, c in said(cut)]
    assert len(notes(whole, "round_trip")) >= 3


def test_row_by_row_is_the_same_as_one_block():
    rows, uni = synthetic(n_symbols=2, seconds=600)
    whole, single = run_all(config(), rows, uni), run_all(config(), rows, uni, list(range(1, len(rows))))
    assert [(ts, dumps(encode(c))) for ts, c in said(whole)] == [(ts, dumps(encode(c))) for ts, c in said(single)]


def test_the_bar_of_a_silent_symbol_closes_by_the_clock():
    rows, uni = synthetic()
    first = int(rows["ts"][0])
    rows = rows[~((rows["sym"] == 1) & (rows["ts"] > first + 100 * SECOND) & (rows["ts"] < first + 300 * SECOND))]
    r = run_all(config(), rows, uni)
    log = [(ts, b) for ts, c in said(r) if isinstance(c, Note) and c.kind == "bars" for b in c.data["bars"] if b[0] == uni[1].symbol]
    last = max(b[1] for _, b in log if b[1] <= first + 100 * SECOND)
    assert [ts for ts, b in log if b[1] == last][0] == last + 15 * SECOND + 250_000_000   # not when it spoke again
    want = build_bars(rows, grid(15 * SECOND, [session_for("NSE", DAY)]))[0]
    want = finished(want)[["ts", "sym", "close"]].tolist()
    assert latest(told(r))[["ts", "sym", "close"]].tolist() == [x for x in want if x[0] <= told(r)["ts"].max()]


MIXED = {"name": "combine", "mode": "all", "memory": 8, "members": [
    {"strategy": "sma_crossover", "params": {"bar_s": 15, "fast_period": 3, "slow_period": 8}},
    {"strategy": "sma_crossover", "params": {"bar_s": 60, "fast_period": 2, "slow_period": 4}}]}


def test_two_bar_sizes_are_combined_as_if_each_had_its_own_frame():
    rows, uni = synthetic(seconds=3600)
    rows["recv"] = rows["ts"]
    rows = rows[np.argsort(rows["recv"], kind="stable")]
    r = run_all(load_config(RunConfig, None, FREE | {"strategy": MIXED}), rows, uni)
    bars, ses, plan = latest(told(r)), session_for("NSE", DAY), r.trader.setup.params
    members = []
    for s, p in legs(plan):
        small = np.zeros(len(bars), SIGNAL)
        for f, x in IDLE.items():
            small[f] = x
        small["ts"], small["sym"] = bars["ts"], bars["sym"]
        own = bars if p.bar_s == 15 else resample(bars, 15 * SECOND, grid(p.bar_s * SECOND, [ses]))
        at = {(int(x["sym"]), int(x["ts"]) + (p.bar_s - 15) * SECOND): x for x in signals(s, p, own)}
        for row in small:
            if (key := (int(row["sym"]), int(row["ts"]))) in at:
                for f in IDLE:
                    row[f] = at[key][f]
        members.append(small)
    how = CombineParams(members=(Member(strategy="sma_crossover"),) * 2, mode="all", memory=8)
    assert sides(combine_signals(how, members)) == heard(r) != {}


CFG: list = []  # configuration and market of the last venue run


def venue_run(**over):
    """A run whose bars are sent by a venue: the book stands still, the bars come as events."""
    ses = session_for("US", date(2026, 11, 19))
    uni = Universe("u", (Instrument("A", "US", currency="USD"), Instrument("B", "US", currency="USD")))
    flat = np.zeros(2, BAR)
    flat["ts"], flat["sym"], flat["volume"] = ses.open_ts, [0, 1], 100
    for f in ("open", "high", "low", "close"):
        flat[f] = 100
    rows = depth_of_bars(flat, uni, MINUTE)
    cfg = load_config(RunConfig, None, FREE | {"venue.terms": "alpaca", "exits.time_stop_s": 0.0, "health.stale_ms": 3_600_000,
                      "health.connection_stale_ms": 3_600_000, "strategy.name": "sma_crossover", "strategy.bars_from": "venue",
                      "strategy.decision_window_ms": 0, "strategy.params.fast_period": 2, "strategy.params.slow_period": 3} | over)
    m = Market(rows, uni, seen_capabilities(rows), date(2026, 11, 19), "t", bar_size=MINUTE)
    CFG[:] = [cfg, m]
    r = paper_run(cfg, m, Memory())
    r.start(ses.open_ts)
    r.feed(rows)
    return r, ses


def bar(ses, k, close, sym=0, flags=0):
    return np.array([(ses.open_ts + k * MINUTE, close, close, close, close, 100.0, np.nan, 4, sym, flags)], BAR)


def send(r, ses, k, close, sym=0, flags=0):
    r.send(BarClosed(ses.open_ts + (k + 1) * MINUTE + 1_000_000, bar_rows(bar(ses, k, close, sym, flags))))


def test_bars_from_the_venue_corrections_included():
    r, ses = venue_run()
    for k, px in enumerate([100, 99, 98, 97]):
        send(r, ses, k, px)
    send(r, ses, 3, 96.5, flags=BAR_UPDATED)
    assert not notes(r, "signal")
    send(r, ses, 4, 101.0)
    (n,) = notes(r, "signal")
    assert (n["symbol"], n["side"], n["blocked"]) == ("A", 1, "")
    send(r, ses, 4, 96.0, flags=BAR_UPDATED)                 # the crossing never was; what was decided stays decided
    send(r, ses, 4, 0.0, flags=BAR_VOID)
    send(r, ses, 5, 102.0)
    assert [x["bar"] for x in notes(r, "signal") if x["side"]] == [ses.open_ts + 4 * MINUTE, ses.open_ts + 5 * MINUTE]
    entries = [c.intent for _, c in said(r) if isinstance(c, Submit) and c.intent.purpose is Purpose.ENTRY]
    assert [i.symbol for i in entries] == ["A"] and entries[0].reason == "sma_crossover"
    send(r, ses, 1, 50.0)                                    # an old bar that is no correction
    assert notes(r, "alert")[-1]["code"] == "bad_bar"


@pytest.mark.parametrize("trades, volume, blocked",
                         [(4, 100.0, "bar_trades"), (10, 100.0, ""), (0, 100.0, "no_trade_counts"), (0, 0.0, "bar_trades")])
def test_bars_of_few_trades_give_no_entry_and_bars_that_count_none_are_named(trades, volume, blocked):
    r, ses = venue_run(**{"strategy.min_bar_trades": 10})
    for k, px in enumerate([100, 99, 98, 97, 101.0]):
        b = bar(ses, k, px)
        b["trades"], b["volume"] = trades, volume
        r.send(BarClosed(ses.open_ts + (k + 1) * MINUTE + 1_000_000, bar_rows(b)))
    assert [n["blocked"] for n in notes(r, "signal") if n["side"]] == [blocked]


def test_restarted_on_the_bars_of_the_store_it_trades_at_once(tmp_path):
    r, ses = venue_run()
    with Store.open(tmp_path / "s.db", "paper") as store:
        ledger = StoreLedger(store)
        for k, px in enumerate([100, 99, 98, 97]):
            send(r, ses, k, px)
        ledger.commands([c for _, c in said(r)], r.trader, BarClosed(0, ()))
        store.commit(True)
        history = kept_bars(store, r.trader.setup.universe, MINUTE)
        assert kept_bars(store, r.trader.setup.universe, 5 * MINUTE) == ()
    cold, _ = venue_run()
    fresh = paper_run(*CFG, Memory())
    fresh.start(ses.open_ts + 4 * MINUTE, snapshot(r.trader), history)
    fresh.feed(CFG[1].rows)
    assert notes(fresh, "warm_up")[0]["bars"] == len(history) == 4
    for run in (fresh, cold):
        send(run, ses, 4, 101.0)
    assert [n["side"] for n in notes(fresh, "signal")] == [1] and not notes(cold, "signal")


def test_a_signal_of_an_old_bar_is_not_traded():
    r, ses = venue_run()
    for k, px in enumerate([100, 99, 98]):
        send(r, ses, k, px)
    r.send(BarClosed(ses.open_ts + 30 * MINUTE, bar_rows(bar(ses, 3, 120.0))))
    assert not notes(r, "signal")


def test_a_bar_event_reads_back_exactly():
    ses = session_for("US", date(2026, 11, 19))
    e = BarClosed(5, bar_rows(np.concatenate([bar(ses, 0, 1.1), bar(ses, 1, 2.2, flags=BAR_UPDATED)])))
    assert repr(decode("event:BarClosed", encode(e))) == repr(e)


def test_a_signal_brings_its_own_exits_and_size():
    own = {"strategy.params.stop_loss_pct": 1.0, "strategy.params.take_profit_pct": 2.0}
    r, ses = venue_run(**own, **{"sizing.fixed_qty": 10})
    for k, px in enumerate([100, 99, 98, 97, 101]):
        send(r, ses, k, px)
    r.advance(r.trader.now + SECOND)
    (sym, h), = r.trader.held.items()
    entry = r.trader.book.avg_px(sym)
    assert [h.stop, h.target] == [(entry * x).quantize(Decimal("0.01"), "ROUND_UP") for x in (Decimal("0.99"), Decimal("1.02"))]
    snap = snapshot(r.trader)
    assert snap["terms"] == {h.entry_id: [0.01, 0.02]}
    r.send(Control(r.trader.now, "flatten", "test"))
    r.advance(r.trader.now + 5 * SECOND)
    assert not r.trader.held and not r.trader.terms


def test_exit_signals_close_and_turn_a_position():
    r, ses = venue_run()
    for k, px in enumerate([100, 99, 98, 97, 101]):
        send(r, ses, k, px)
    r.advance(r.trader.now + SECOND)
    assert r.trader.book.qty(0) == 1
    send(r, ses, 5, 90.0)
    r.advance(r.trader.now + SECOND)
    assert r.trader.book.qty(0) == -1                        # closed and turned round within the bar
    assert [x["reason"] for x in notes(r, "round_trip")] == ["signal"]


def test_more_crossings_than_places():
    r, ses = venue_run(**{"risk.max_concurrent_positions": 1})
    for k, px in enumerate([100, 99, 98, 97]):
        r.send(BarClosed(ses.open_ts + (k + 1) * MINUTE, bar_rows(np.concatenate([bar(ses, k, px), bar(ses, k, px, 1)]))))
    r.send(BarClosed(ses.open_ts + 5 * MINUTE, bar_rows(np.concatenate([bar(ses, 4, 101), bar(ses, 4, 101, 1)]))))
    assert len([c for _, c in said(r) if isinstance(c, Submit)]) == 1
    r.advance(r.trader.now + 2 * SECOND)
    assert len(r.trader.held) == 1


def test_a_crossing_is_not_lost_to_the_rate_limit():
    r, ses = venue_run(**{"risk.max_orders_per_second": 1, "exits.mode": "local"})
    for k, px in enumerate([100, 99, 98, 97, 101]):
        r.send(BarClosed(ses.open_ts + (k + 1) * MINUTE, bar_rows(np.concatenate([bar(ses, k, px), bar(ses, k, px, 1)]))))
    r.advance(r.trader.now + 5 * SECOND)
    sent = [c.intent for _, c in said(r) if isinstance(c, Submit)]
    assert [(i.symbol, i.ts - ses.open_ts) for i in sent] == [("A", 5 * MINUTE), ("B", 5 * MINUTE + SECOND)]
    assert not notes(r, "refusal")


@pytest.fixture(scope="module")
def tape(tmp_path_factory):
    rows, uni = synthetic(n_symbols=2, seconds=900, seed=5)
    path = tmp_path_factory.mktemp("bars") / "tape.parquet"
    write_parquet(rows, uni, path)
    return path


def journal(run_dir):
    with Store.open(run_dir / "store.db", "bars", exclusive=False) as s:
        return list(s.records()), s.rows(BARS)


@pytest.mark.parametrize("crash_at", [9, 33])
def test_killed_in_the_middle_it_goes_on_as_if_nothing_had_happened(tape, tmp_path, crash_at):
    cfg = config(**{"data.recording": str(tape), "run.account": "bars", "exits.time_stop_s": 20.0})
    assert life(cfg, tmp_path / "whole") == 0
    assert life(cfg, tmp_path / "cut", crash_at) == -9
    assert life(cfg, tmp_path / "cut") == 0
    (whole, bars), (cut, bars2) = journal(tmp_path / "whole"), journal(tmp_path / "cut")
    begin = max(i for i, r in enumerate(cut) if r.kind == "event:Started")
    after = cut[begin].ts

    def signals_after(records):
        import json
        found = [(r.ts, json.loads(r.data)) for r in records if r.kind == "note:signal" and r.ts > after]
        return [(ts, d["symbol"], d["bar"], d["side"]) for ts, d in found if d["side"]]

    assert signals_after(whole) == signals_after(cut[begin:]) != []
    assert bars == bars2
    assert replay_run(tmp_path / "whole").ok and replay_run(tmp_path / "cut").ok


def test_recorded_bars_are_traded_with_the_days_before_as_history(tmp_path):
    rng = np.random.default_rng(3)
    lines = ["datetime,open,high,low,close,volume"]
    for day in ("2026-11-18", "2026-11-19"):
        px = 100 + np.cumsum(rng.normal(0, 0.05, 390))
        for k, p in enumerate(px.round(2)):
            t = np.datetime64(f"{day}T09:30") + np.timedelta64(k, "m")
            lines.append(f"{str(t).replace('T', ' ')}:00,{p},{p + 0.03:.2f},{p - 0.03:.2f},{p},{100 + k}")
    (tmp_path / "X_1min.csv").write_text("\n".join(lines) + "\n")
    over = {"data.recording": str(tmp_path / "X_1min.csv"), "venue.terms": "alpaca", "health.stale_ms": 180_000,
            "health.connection_stale_ms": 180_000}
    cfg = config(**over, **{"strategy.params.bar_s": 300})
    m = load_market(cfg)
    assert (m.day, m.bar_size, len(m.history), len(m.rows)) == (date(2026, 11, 19), MINUTE, 390, 390 * 4 + 1)
    r = paper_run(cfg, m, Memory())
    assert len(r.trader.setup.history) == 8 + 1 + 2          # as many as settle the averages
    r.start(int(m.rows["recv"][0]))
    assert notes(r, "warm_up")[0]["short"] == [] and r.trader.desk.runs[0].ready
    r.feed(m.rows)
    r.send(Clock(int(m.rows["ts"].max()) + SECOND))
    given = load_bars(tmp_path / "X_1min.csv", "US").bars
    want = resample(given[390:], MINUTE, grid(5 * MINUTE, [session_for("US", m.day)]))
    for f in ("ts", "open", "high", "low", "close", "volume"):
        assert latest(told(r))[f].tolist() == want[f].tolist()
    assert load_market(config(**over, **{"data.start": "2026-11-18", "data.end": "2026-11-18"})).day == date(2026, 11, 18)
    with pytest.raises(ConfigError, match="whole multiple of 60 s"):
        paper_run(config(**over), m, Memory())
    with pytest.raises(ConfigError, match="pressure scalper needs"):
        paper_run(load_config(RunConfig, None, FREE | over), m, Memory())


@pytest.mark.parametrize(("section", "words"), [
    ({"name": "sma_crosover"}, "did you mean sma_crossover"),
    ({"name": "sma_crossover", "params": {"fast_period": 50}}, "below the slow one"),
    ({"name": "sma_crossover", "params": {"fast": 5}}, "params.fast"),
    ({"name": "sma_crossover", "lower": 0.7}, "strategy.lower"),
    ({"name": "no_such.module:X"}, "imported"),
    ({"name": "combine"}, "members"),
    ({"name": "sma_crossover", "cooldown_s": -1.0}, "strategy.cooldown_s"),
    ({"lower": 2.0}, "strategy.lower"),
    ({"name": "pressure", "params": {}}, "strategy.params"),
])
def test_a_wrong_strategy_section_is_refused_in_its_own_words(section, words):
    with pytest.raises(InvalidConfig, match=words):
        load_config(RunConfig, None, {"strategy": section})


def test_real_us_minutes_through_the_whole_trader():
    path = realdata("us_bars/us_24symbols_1min_2019-02-11_2019-02-15.tar.xz")
    over = {"data.recording": str(path), "venue.terms": "alpaca", "health.stale_ms": 180_000, "health.connection_stale_ms": 180_000,
            "strategy": {"name": "sma_crossover"}, "data.symbols": ["AAPL", "MSFT", "SPY"], "risk.max_orders_per_second": 20}
    cfg = load_config(RunConfig, None, FREE | over)
    m = load_market(cfg)
    r = paper_run(cfg, m, Memory())
    r.start(int(m.rows["recv"][0]))
    r.feed(m.rows)
    (s, p), = legs(cfg.strategy)
    bars = load_bars(path, "US", symbols=("AAPL", "MSFT", "SPY")).bars
    want = {k: v for k, v in sides(signals(s, p, bars)).items() if int(m.rows["ts"].min()) <= k[1] <= told(r)["ts"].max()}
    assert want == heard(r) != {}


def test_volatility_scales_exits_and_size_of_the_scalper_and_nothing_when_off():
    from markets import config as busy
    rows, uni = synthetic()
    plain = run_all(busy(**{"sizing.fixed_qty": 100}), rows, uni)
    over = {"volatility.reference": 0.0005, "volatility.exits": True, "volatility.size": True, "sizing.fixed_qty": 100}
    scaled = run_all(busy(**over), rows, uni)
    neutral = run_all(busy(**over | {"volatility.least": 1.0, "volatility.most": 1.0}), rows, uni)
    entries = [[c.intent for _, c in said(r) if isinstance(c, Submit) and c.intent.purpose is Purpose.ENTRY] for r in (plain, scaled, neutral)]
    assert [(i.id, i.qty, i.limit) for i in entries[0]] == [(i.id, i.qty, i.limit) for i in entries[2]] != []
    assert {i.qty for i in entries[1]} != {Decimal(100)} and len({i.qty for i in entries[1]}) > 2
    stops = {c.intent.parent: abs(c.intent.stop / c.intent.ref_px - 1) for _, c in said(scaled) if isinstance(c, Submit) and c.intent.stop}
    assert stops
    strict = run_all(busy(**{"volatility.reference": 1e-6, "volatility.most": 100.0, "volatility.thresholds": True}), rows, uni)
    assert {n["code"] for n in notes(strict, "refusal")} >= {"depth_for_volatility"}
    with pytest.raises(InvalidConfig, match="strategy.params.vol"):
        config(**{"volatility.exits": True})
