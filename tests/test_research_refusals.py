"""Bad input to research: every public entry point refuses in its own words, with the thing, the value, what is allowed and what to do next."""

import math
from collections.abc import Callable
from dataclasses import replace
from datetime import date, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest
from markets import synthetic

from scalp_nb.feed.depth import Rows
from scalp_nb.feed.errors import DataError, ScalpError
from scalp_nb.feed.instrument import Instrument, Universe
from scalp_nb.research.plots import band_figure, heat_figure, heat_table, in_out_figure, interval_figure, peak
from scalp_nb.research.splits import combinatorial, out_of_sample, purged_folds, walk_forward
from scalp_nb.research.stats import (
    StatsError,
    bootstrap_interval,
    deflated_sharpe,
    minimum_track_record,
    moments,
    overfitting_probability,
    probabilistic_sharpe,
    shift_test,
    superior_ability,
)
from scalp_nb.research.sweep import (
    FillModel,
    Session,
    break_even,
    cell_numbers,
    fill_model,
    run_tape,
    run_unit,
    session_nets,
    session_of,
    sets_frame,
    summary,
    sweep,
    sweep_space,
    tape_of,
    trades_of,
    units_of,
    without_rows,
)
from scalp_nb.research.trials import ResearchError, TrialLog
from scalp_nb.research.validate import cost_stress, make_trades, neighbours, random_entry, stability, touch_of, touch_path
from scalp_nb.strategy.pressure import PressureParams

ROWS, UNIVERSE = synthetic(2, 300, 4)
SPACE = sweep_space(lower=(0.6, 0.7))
SETS = sets_frame(SPACE, cell_numbers(SPACE))
DAYS = [date(2026, 11, 1) + timedelta(k) for k in range(12)]
NOISE = np.random.default_rng(1).normal(0, 1, (40, 3))
TABLE = pd.DataFrame([[1.0, 2.0]])
WINDOWS = PressureParams(windows=({"start": "09:30", "end": "10:00"},))  # type: ignore[arg-type]
TOUCH = touch_path([0, 10, 20], [99.0] * 3, [100.0] * 3)


def changed(which: int = 0, **columns: Any) -> Rows:
    "The rows with one symbol's best price or quantity replaced."
    rows = ROWS.copy()
    at = rows["sym"] == which
    for name, value in columns.items():
        if rows[name].ndim == 2: rows[name][at] = value
        else: rows[name][at] = value
    return rows


def session(name: str = "d", rows: Rows = ROWS, universe: Universe = UNIVERSE, **more: Any) -> Session:
    return session_of(name, rows, universe, **more)


def run(rows: Rows, **model: Any) -> Any: return run_unit(units_of([session("bad", rows)], SPACE, FillModel(**model), ["S0"])[0])


def dollars() -> Universe: return Universe("us", tuple(replace(i, currency="USD") for i in UNIVERSE.instruments))


def coarse() -> Rows:
    rows = ROWS.copy()
    for f in ("bid_px", "ask_px", "ltp"): rows[f] = np.rint(rows[f] / 0.5) * 0.5
    return rows


def results() -> pd.DataFrame:
    one = run_unit(units_of([session()], SPACE, FillModel(), ["S0"])[0])
    return pd.concat([one.assign(session=f"d{k}") for k in range(6)], ignore_index=True)


def one_trade(**more: Any) -> Any: return make_trades(**{"session": [0], "path": 0, "entry": [5], "side": 1, "gross": 0.0, "cost": 0.0, **more})


# entry point, call, the thing named, the value shown, the next step or what is allowed
CASES: list[tuple[str, Callable[[], Any], str, str, str]] = [
    # the space
    ("space: lower > upper", lambda: sweep_space(lower=0.9, upper=0.8), "sweep space", "lower 0.9 exceeds upper 0.8", "split the space"),
    ("space: some lower > some upper", lambda: sweep_space(lower=(0.6, 0.9), upper=(0.8, 0.95)), "sweep space", "lower 0.9", "split the space"),
    ("space: target 0", lambda: sweep_space(target_pct=0.0), "target_pct", "0.0", "allowed: 0.0 to 1.0"),
    ("space: target < 0", lambda: sweep_space(target_pct=-0.01), "target_pct", "-0.01", "allowed: 0.0 to 1.0"),
    ("space: stop 0", lambda: sweep_space(stop_pct=0), "stop_pct", "0", "allowed: 0.0 to 0.2"),
    ("space: stop beyond", lambda: sweep_space(stop_pct=0.3), "stop_pct", "0.3", "allowed: 0.0 to 0.2"),
    ("space: hold < 0", lambda: sweep_space(hold_s=-1), "hold_s", "-1", "allowed: 0.0 to 86400.0"),
    ("space: multiplier < 1", lambda: sweep_space(depth_multiplier=0.5), "depth_multiplier", "0.5", "allowed: 1.0 to 100.0"),
    ("space: lower 0.5", lambda: sweep_space(lower=0.5), "lower", "0.5", "allowed: 0.5 to 1.0"),
    ("space: NaN", lambda: sweep_space(lower=(0.7, math.nan)), "lower.1", "nan", "finite"),
    ("space: infinite", lambda: sweep_space(upper=math.inf), "upper", "inf", "finite"),
    ("space: bool", lambda: sweep_space(lower=True), "lower", "True", "not a number"),
    ("space: text", lambda: sweep_space(stop_pct="0.01"), "stop_pct", "'0.01'", "not a number"),
    ("space: nothing", lambda: sweep_space(lower=None), "lower", "None", "correct the axis named"),
    ("space: empty axis", lambda: sweep_space(lower=()), "lower", "()", "give at least one value"),
    ("space: duplicates", lambda: sweep_space(stop_pct=(0.01, 0.01)), "stop_pct", "(0.01, 0.01)", "repeats"),
    ("space: duplicates of two types", lambda: sweep_space(hold_s=(1, 1.0)), "hold_s", "(1.0, 1.0)", "repeats"),
    ("space: unknown axis", lambda: sweep_space(stops=3), "stops", "3", "correct the axis named"),
    ("space: unknown pressure", lambda: sweep_space(pressure="deep"), "pressure", "'deep'", "'whole_book' or 'displayed'"),
    ("space: sample too large", lambda: sweep_space(lower=(0.6, 0.7), sample=3), "sample", "3 from 2", "leave sample out"),
    ("space: sample of True", lambda: sweep_space(sample=True), "sample", "True", "integer"),
    # the fill model
    ("model: costs < 0", lambda: fill_model(cost_bps=-1.0), "cost_bps", "-1.0", "greater than or equal to 0"),
    ("model: costs NaN", lambda: fill_model(cost_bps=math.nan), "cost_bps", "nan", "finite"),
    ("model: costs as text", lambda: fill_model(cost_bps="3"), "cost_bps", "'3'", "number"),
    ("model: tick 0", lambda: fill_model(tick=0.0), "tick", "0.0", "greater than 0"),
    ("model: latency < 0", lambda: fill_model(latency_ns=-1), "latency_ns", "-1", "greater than or equal to 0"),
    ("model: two latencies", lambda: fill_model(latency_ns=1, latency_rows=1), "fill model", "latency_ns 1", "give one"),
    ("model: hold_ms", lambda: fill_model(rule=PressureParams(hold_ms=500)), "rule.hold_ms", "500", "research.backtest"),
    ("model: hold_rows", lambda: fill_model(rule=PressureParams(hold_rows=3)), "rule.hold_rows", "3", "research.backtest"),
    ("model: windows", lambda: fill_model(rule=WINDOWS), "rule.windows", "(9, 30)", "Session.entry"),
    ("model: unknown field", lambda: fill_model(slippage=1), "slippage", "1", "correct the field named"),
    # sessions
    ("session: empty", lambda: session("day", ROWS[:0]), "rows of session day", "0", "record it again"),
    ("session: nothing left after selection", lambda: session("day", ROWS[ROWS["sym"] > 7]), "rows of session day", "0", "leave the session out"),
    ("session: entry window beside it", lambda: session("day", entry=(1, 2)), "entry window of session day", "(1, 2)", "ns UTC"),
    ("session: entry window backwards", lambda: session("day", entry=(2, 1)), "entry window of session day", "(2, 1)", "ns UTC"),
    ("session: symbols outside the universe", lambda: session("day", ROWS, Universe("one", UNIVERSE.instruments[:1])), "sym", "1", "0"),
    ("session: no path", lambda: without_rows(session("day")), "path of session day", "''", "session_at"),
    # what a sweep is made of
    ("units: no session", lambda: units_of([], SPACE), "sessions", "0", "name the recordings"),
    ("units: two of one name", lambda: units_of([session(), session()], SPACE), "session names", "['d', 'd']", "each name once"),
    ("units: symbol missing", lambda: units_of([session()], SPACE, symbols=["S0", "X"]), "symbol in session d", "'X'", "leave the session out"),
    ("units: symbol twice", lambda: units_of([session()], SPACE, symbols=["S0", "S0"]), "symbols", "('S0', 'S0')", "each symbol once"),
    ("units: other universe", lambda: units_of([session(), session("e", ROWS[ROWS["sym"] == 0], Universe("u", UNIVERSE.instruments[:1]))], SPACE),
     "universe of session e", "('S0',)", "name the symbols"),
    ("units: two currencies", lambda: units_of([session(), session("us", ROWS, dollars())], SPACE), "currencies", "['INR', 'USD']", "by itself"),
    ("units: two ticks", lambda: units_of([session(), session("e", coarse())], SPACE), "tick of S0", "'e': 0.5", "set FillModel.tick"),
    ("units: chunk 0", lambda: units_of([session()], SPACE, chunk=0), "chunk", "0", "1 or more"),
    # prices
    ("tape: symbol without rows", lambda: run(ROWS[ROWS["sym"] == 1]), "rows of S0 in session bad", "0", "leave the symbol"),
    ("tape: NaN prices, whole session", lambda: run(changed(bid_px=np.nan, ask_px=np.nan)), "prices of S0 in session bad", "NaN", "leave the symbol"),
    ("tape: no bid, whole session", lambda: run(changed(bid_px=np.nan)), "prices of S0 in session bad", "NaN", "best bid and best ask"),
    ("tape: no ask, whole session", lambda: run(changed(ask_px=np.nan)), "prices of S0 in session bad", "NaN", "best bid and best ask"),
    ("tape: infinite price", lambda: run(changed(ltp=np.inf)), "price of S0 in session bad", "infinite", "finite"),
    ("tape: off the tick", lambda: run(changed(bid_px=99.9876), tick=0.05), "price of S0 in session bad", "99.9876", "set FillModel.tick"),
    ("tape: no totals", lambda: run(changed(total_buy=np.nan)), "whole-book totals of S0", "none", "sweep pressure='displayed' only"),
    # sets
    ("sets: axis missing", lambda: run_tape(TAPE(), SETS.drop(columns="hold_s")), "axis of the sets", "'hold_s'", "sets_frame"),
    ("sets: NaN", lambda: run_tape(TAPE(), SETS.assign(stop_pct=np.nan)), "sets to run", "nan", "sets_frame"),
    ("sets: lower > upper", lambda: run_tape(TAPE(), SETS.assign(lower=0.9, upper=0.8)), "lower and upper", "(0.9, 0.8)", "lower <= upper"),
    ("sets: looser than the tape", lambda: run_tape(TAPE(), SETS.assign(lower=0.55)), "lower of a set on S0", "0.55", "make the tape for a space"),
    ("sets: wider than the tape", lambda: trades_of(TAPE(), SETS.assign(upper=1.0)), "upper of a set on S0", "1.0", "make the tape for a space"),
    ("sets: other pressure", lambda: run_tape(TAPE(), SETS.assign(pressure="displayed")), "pressure definition", "'displayed'", "sweep it too"),
    # results
    ("summary: too few sessions", lambda: summary(results().query("session < 'd3'"), 1.0), "sessions", "3", "add sessions"),
    ("summary: nothing", lambda: summary(results()[:0], 1.0), "sweep results", "0", "run the sweep first"),
    ("summary: unfinished", lambda: summary(results()[:-1], 1.0), "units of set", "5", "finish the sweep"),
    ("summary: costs < 0", lambda: summary(results(), -1.0), "cost of one side", "-1.0", "basis points"),
    ("summary: NaN results", lambda: summary(results().assign(net_bps=np.nan), 1.0), "net_bps", "0", "run that unit again"),
    ("summary: min_sessions 0", lambda: summary(results(), 1.0, 0), "min_sessions", "0", "1 or more"),
    ("nets: unfinished", lambda: session_nets(results()[:-1]), "result of set 1", "None", "finish the sweep"),
    ("break-even: costs NaN", lambda: break_even(0.0025, 0.01, math.nan), "cost of one side", "nan", ">= 0"),
    ("break-even: stop 0", lambda: break_even(0.0, 0.01, 1.0), "stop distance", "0.0", "> 0"),
    # statistics
    ("stats: too few sessions", lambda: moments([0.1, 0.2]), "sessions", "2", "at least 3"),
    ("stats: NaN session", lambda: moments([0.1, math.nan, 0.2]), "session returns", "1", "finite"),
    ("stats: never moved", lambda: moments([0.0] * 5), "spread of session returns", "0.0", "never traded"),
    ("stats: 2 sessions for a probability", lambda: probabilistic_sharpe(0.1, 2), "sessions", "2", "record or load more"),
    ("stats: no edge to prove", lambda: minimum_track_record(-0.1), "Sharpe ratio", "-0.1", "no record is long enough"),
    ("stats: trials not counted", lambda: deflated_sharpe(NOISE[:, 0], [0.1, 0.2, 0.3], 2), "trials", "2", "count every set"),
    ("stats: PBO, few sessions", lambda: overfitting_probability(NOISE[:19]), "sessions", "19", "at least 20"),
    ("stats: PBO, one set", lambda: overfitting_probability(NOISE[:, :1]), "parameter sets", "1", "at least 2"),
    ("stats: PBO, NaN", lambda: overfitting_probability(np.where(NOISE == NOISE[3, 1], np.nan, NOISE)), "return matrix", "(3, 1)", "finite"),
    ("stats: SPA, few sessions", lambda: superior_ability(NOISE[:9], 0), "sessions", "9", "at least 10"),
    ("stats: SPA, chosen", lambda: superior_ability(NOISE, 3), "chosen set", "3", "0 to 2"),
    ("stats: interval, few", lambda: bootstrap_interval(NOISE[:5, 0]), "session", "5", "at least 10"),
    ("stats: interval, confidence", lambda: bootstrap_interval(NOISE[:, 0], 1.0), "confidence", "1.0", "1 excluded"),
    ("stats: shifts, short recording", lambda: shift_test([(NOISE[:, 0], NOISE[:, 1])], 15), "independent shifts", "11", "longer recording"),
    ("stats: shifts, constant pressure", lambda: shift_test([(np.ones(40), NOISE[:, 1])], 1), "spread of a series", "0.0", "never moved"),
    ("stats: shifts, two grids", lambda: shift_test([(NOISE[:, 0], NOISE[:, 1]), (NOISE[:9, 0],) * 2], 1), "lengths", "[9, 40]", "common grid"),
    ("stats: shifts, NaN pressure", lambda: shift_test([(np.full(40, np.nan), NOISE[:, 1])], 1), "known values", "0", "at least 3"),
    ("stats: shifts, infinite", lambda: shift_test([(NOISE[:, 0], np.full(40, np.inf))], 1), "series to be shifted", "infinite", "finite"),
    # splits
    ("splits: walk-forward, few", lambda: walk_forward(DAYS, 10, 3), "sessions", "12", "load more"),
    ("splits: out of order", lambda: walk_forward(DAYS[::-1], 3, 2), "session dates", "2026-11-12", "sort them"),
    ("splits: one day twice", lambda: purged_folds([*DAYS, DAYS[-1]], 3), "session dates", "2026-11-12", "merge symbols"),
    ("splits: purge < 0", lambda: purged_folds(DAYS, 4, purge=-1), "purge", "-1", "at least 0"),
    ("splits: groups", lambda: list(combinatorial(DAYS, 7, 2)), "sessions", "12", "at least 14"),
    ("splits: none", lambda: out_of_sample(NOISE[:12], []), "splits", "0", "1"),
    # the gate's parts
    ("gate: NaN gross", lambda: one_trade(gross=math.nan), "gross of trade 0", "nan", "finite"),
    ("gate: costs < 0", lambda: one_trade(cost=-0.1), "cost of trade 0", "-0.1", ">= 0"),
    ("gate: side 0", lambda: one_trade(side=0), "side of trade 0", "0", "1"),
    ("gate: NaN path", lambda: touch_path([0, 10], [99, np.nan], [100, 100]), "row 1", "nan", "leave out rows"),
    ("gate: unquoted symbol", lambda: touch_of(ROWS, 9), "rows of symbol 9", "0", "choose a symbol that was quoted"),
    ("gate: no trades", lambda: random_entry(make_trades([], [], [], [], [], []), [TOUCH]), "trades", "0", "never trades"),
    ("gate: entry outside", lambda: random_entry(one_trade(entry=[99]), [TOUCH]), "entry of trade 0", "99", "window"),
    ("gate: neighbours of one", lambda: neighbours({"x": [1.0], "y": [2.0]}, 0), "neigh", "0", "search a grid"),
    ("gate: no neighbours", lambda: stability(NOISE, 0, np.array([0])), "neigh", "0", "without the chosen"),
    ("gate: cost factor", lambda: cost_stress(one_trade(), 1, -1), "cost factor", "-1", "0"),
    # pictures
    ("plots: map of the best", lambda: heat_table(results(), "lower", "upper", "net_bps", "max"), "average", "'max'", "luck"),  # type: ignore[arg-type]
    ("plots: nothing traded", lambda: peak(TABLE * np.nan), "values of a heat map", "NaN", "widen its bounds"),
    ("plots: cell outside", lambda: heat_figure(TABLE, "t", mark=(1, 0)), "cell of a heat map", "(1, 0)", "row below 1"),
    ("plots: no estimates", lambda: interval_figure(TABLE, "t", "x", "y"), "column of the estimates", "'name'", "0, 1"),
    ("plots: no p-values", lambda: band_figure(TABLE.set_axis(["name", "x"], axis=1), "t", "x", "y"), "column of the estim", "'value'", "x"),
    ("plots: unequal", lambda: in_out_figure([1.0], [1.0, 2.0], "t"), "results", "(2,)", "equal length"),
]


def TAPE() -> Any: return tape_of("d", "S0", 0, [ROWS], SPACE)


@pytest.mark.parametrize(("call", "thing", "value", "step"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_refused(call: Callable[[], Any], thing: str, value: str, step: str) -> None:
    with pytest.raises(ScalpError) as err: call()
    assert isinstance(err.value, ResearchError | StatsError | DataError)
    text = str(err.value)
    for part in (thing, value, step): assert part in text, f"{part!r} is not in: {text}"
    assert "got" in text or err.value.value is not None


def test_a_sweep_refuses_before_it_counts(tmp_path) -> None:
    log = TrialLog(tmp_path / "t.jsonl")
    with pytest.raises(ResearchError): next(sweep([session("bad", changed(bid_px=np.nan))], SPACE, log))
    with pytest.raises(ResearchError): next(sweep([session()], SPACE, log, symbols=["X"]))
    assert log.count("pressure") == 0


@pytest.mark.parametrize("columns", [("bid_px",), ("ask_px",), ("bid_px", "ask_px"), ("ltp",), ("total_buy",)])
def test_holes_in_some_rows_cost_those_rows_and_nothing_else(columns: tuple[str, ...]) -> None:
    "Prices missing in part of a session are neither refused nor turned into NaN results, and no trade is made at a price that was not shown."
    rows, at = ROWS.copy(), np.random.default_rng(3).random(len(ROWS)) < 0.3
    for c in columns: rows[c][at] = np.nan
    space = sweep_space(pressure="displayed", lower=(0.55, 0.6), depth_multiplier=1.0, stop_pct=0.001, target_pct=0.001)
    tape = tape_of("d", "S0", 0, [rows], space)
    sets = sets_frame(space, cell_numbers(space))
    model = FillModel(rule=PressureParams(rest_s=0.0))
    got, t = run_tape(tape, sets, model), trades_of(tape, sets, model)
    assert np.isfinite(got.to_numpy(float)).all() and (got["trades"] > 5).all()
    mine = rows[rows["sym"] == 0]
    for r in t.itertuples():
        near = "ask_px" if r.side > 0 else "bid_px"
        assert mine[near][r.entry_row, 0] == pytest.approx(r.entry)


def test_one_symbol_of_many_missing_in_one_session_is_named() -> None:
    both, less = session("full"), session("less", ROWS[ROWS["sym"] == 0], Universe("u", (Instrument("S0", "NSE"),)))
    with pytest.raises(ResearchError, match="symbol in session less: got 'S1'"): units_of([both, less], SPACE, symbols=["S0", "S1"])
    assert [u.session.name for u in units_of([both, less], SPACE, symbols=["S0"])] == ["full", "less"]
