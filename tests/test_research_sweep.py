"""The sweep's kernel against a walk over every row, against vectorbt and against the Trader."""

import math
import pickle
from collections.abc import Iterator
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markets import random_tape, synthetic

from scalp_nb.feed.depth import DEPTH, Rows, empty_depth
from scalp_nb.feed.health import HealthConfig, health_params
from scalp_nb.feed.instrument import Instrument, Universe
from scalp_nb.order.exits import ExitConfig, levels
from scalp_nb.order.types import Side
from scalp_nb.research.sweep import (
    AXES, TOTALS, FillModel, cell_numbers, run_tape, run_unit, session_at, session_of, sets_frame, summary, sweep, sweep_space, tape_of, trades_of,
    units_of, without_rows,
)
from scalp_nb.research.trials import ResearchError, TrialLog
from scalp_nb.strategy.pressure import PressureParams, rule_params
from scalp_nb.strategy.scan import LONG_OK, NEVER, SHORT_OK, Scanner

START = 1_795_060_000_000_000_000
TICK = Decimal("0.05")


# ---- a walk over every row -----------------------------------------------------------------------------------------------------------

def facts(rows: Rows, which: int, n_symbols: int, model: FillModel, params: PressureParams, entry: tuple[int, int]) -> Iterator[dict]:
    """What the production scan, run with the set's own parameters over all symbols, says of every accepted row of one symbol."""
    sc = Scanner(n_symbols, health_params(model.health, 0, NEVER) | rule_params(params))
    sc.g["entries_on"], sc.g["entry_from"], sc.g["entry_until"] = 1, *entry
    sc.sym["allow"] = LONG_OK | (SHORT_OK if params.allow_short else 0)
    s = sc.sym[which]
    for i in range(len(rows)):
        seen = int(s["rows"])
        sc.run(rows[i:i + 1], 0, NEVER)
        sc.close_window()
        sc.sym["cand"] = 0
        if rows["sym"][i] == which and int(s["rows"]) > seen:
            r, signal = rows[i], int(s["signal"])
            now, g = int(sc.g["now"]), sc.g
            healthy = int(s["health"]) == 0
            allowed = signal != 0 and healthy and now >= g["suspect_until"] and entry[0] <= now < entry[1] \
                and bool(int(s["allow"]) & (LONG_OK if signal > 0 else SHORT_OK))
            yield {"now": now, "bid": float(r["bid_px"][0]), "ask": float(r["ask_px"][0]), "ltp": float(r["ltp"]),
                   "enter": signal if allowed else 0, "signal": signal if healthy else 0}


def on_tick(px: Decimal, direction: int) -> Decimal:
    k = px / TICK
    return TICK * (k.to_integral_value("ROUND_CEILING") if direction > 0 else k.to_integral_value("ROUND_FLOOR"))


def exact(px: float) -> Decimal: return TICK * round(px / 0.05)


def last_by(rows: list[dict], t: int) -> int: return max(i for i, r in enumerate(rows) if r["now"] <= t)


def walk(rows: list[dict], q, model: FillModel) -> list[tuple]:
    """The docstring's six rules, row by row, in exact decimals: (signal row, entry row, exit row, side, entry, exit, reason)."""
    two = [i for i, r in enumerate(rows) if math.isfinite(r["bid"]) and math.isfinite(r["ask"])]
    if not two: return []
    end, out, i, free = two[-1], [], 0, 0
    hold, lat, rest = round(q.hold_s * 1e9), model.latency_ns, round(model.rule.rest_s * 1e9)
    cfg = ExitConfig(stop_pct=q.stop_pct, target_pct=q.target_pct)

    def meets(j: int) -> int: return last_by(rows, rows[j]["now"] + lat) if lat else min(j + model.latency_rows, len(rows) - 1)

    while i < len(rows) and not (model.max_trades and len(out) >= model.max_trades):
        side = rows[i]["enter"]
        if side == 0 or rows[i]["now"] < free:
            i += 1
            continue
        f = meets(i)
        if f >= end: break
        bid, ask = rows[f]["bid"], rows[f]["ask"]
        if math.isnan(bid) or math.isnan(ask) or bid > ask:
            i = f + 1
            continue
        entry = exact(ask if side > 0 else bid)
        entry_ts = rows[i]["now"] + lat if not model.latency_rows else rows[f]["now"]
        stop, target = levels(Side(side), entry, cfg, on_tick)
        x, reason, exit_ts = end, "end", rows[end]["now"]
        for j in range(f + 1, end + 1):
            r = rows[j]
            if hold and r["now"] > entry_ts + hold: break
            px = r["bid"] if side > 0 else r["ask"]
            px = r["ltp"] if math.isnan(px) else px
            hit = ""
            if math.isfinite(px) and (exact(px) - stop) * side <= 0: hit = "stop"
            elif math.isfinite(px) and (exact(px) - target) * side >= 0: hit = "target"
            elif model.rule.exit_on_opposite and r["signal"] == -side: hit = "opposite"
            if hit:
                x, reason = meets(j), hit
                exit_ts = r["now"] + lat if not model.latency_rows else rows[min(x, end)]["now"]
                break
        if reason == "end" and hold and last_by(rows, entry_ts + hold) < end:
            reason, exit_ts = "time", entry_ts + hold + lat
            x = last_by(rows, exit_ts) if not model.latency_rows else min(last_by(rows, entry_ts + hold) + model.latency_rows, end)
            if model.latency_rows: exit_ts = rows[x]["now"]
        x = min(x, end)
        while math.isnan(rows[x]["bid" if side > 0 else "ask"]): x += 1
        exit_ts = rows[end]["now"] if x == end else max(exit_ts, rows[x]["now"])
        out.append((i, f, x, side, float(entry), float(exact(rows[x]["bid"] if side > 0 else rows[x]["ask"])), reason))
        i, free = x + 1, exit_ts + rest
    return out


def holey(rng: np.random.Generator, n: int) -> Rows:
    """A random tape, with runs without one side, sometimes without a last trade, and several rows at one time."""
    rows = random_tape(rng, n, 2, START)
    for f in ("bid_px", "ask_px"):
        for a in rng.integers(0, n, n // 60): rows[f][a:a + int(rng.integers(1, 12)), 0] = np.nan
    rows["ltp"][rng.random(n) < 0.2] = np.nan
    same = rng.random(n) < 0.1
    rows["recv"][1:][same[1:]] = rows["recv"][:-1][same[1:]]
    rows["recv"] = np.maximum.accumulate(rows["recv"])
    return rows


@st.composite
def cases(draw):
    model = FillModel(
        rule=PressureParams(warmup_rows=draw(st.integers(1, 5)), rest_s=draw(st.sampled_from([0.0, 0.05, 3.0])), max_spread_bps=500.0,
                            confirm_levels=draw(st.sampled_from([1, 3, 5])), allow_short=draw(st.booleans()), exit_on_opposite=draw(st.booleans()),
                            min_ofi=draw(st.sampled_from([None, 0.0])), min_gradient=draw(st.sampled_from([None, 0.01])),
                            min_footprint=draw(st.sampled_from([None, 0.8]))),
        health=HealthConfig(stale_ms=3000, suspect_ms=500), cost_bps=draw(st.sampled_from([0.0, 3.5])),
        max_trades=draw(st.sampled_from([0, 0, 3])), tick=draw(st.sampled_from([None, 0.05])),
        **draw(st.sampled_from([{}, {"latency_rows": 1}, {"latency_rows": 7}, {"latency_ns": 1}, {"latency_ns": 60_000_000}, {"latency_ns": 2_000_000_000}])))
    space = sweep_space(pressure=draw(st.sampled_from([("whole_book",), ("displayed",), ("whole_book", "displayed")])), lower=(0.52, 0.6, 0.7),
                        upper=(0.8, 1.0), depth_multiplier=(1.0, 1.3), stop_pct=(0.0005, 0.002), target_pct=(0.0005, 0.003),
                        hold_s=(0.0, draw(st.sampled_from([0.01, 0.3, 9.0]))), sample=draw(st.sampled_from([None, 1, 2, 30])), seed=draw(st.integers(0, 99)))
    return draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from([40, 700])), model, space, draw(st.booleans())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(cases())
def test_kernel_equals_a_walk_over_every_row(case):
    seed, n, model, space, window = case
    rows = holey(np.random.default_rng(seed), n)
    entry = (int(rows["recv"][n // 5]), int(rows["recv"][n - n // 5])) if window else (0, NEVER)
    params = sets_frame(space, cell_numbers(space))
    try: tape = tape_of("d", "S1", 1, [rows[:13], rows[13:]], space, model, entry)
    except ResearchError as err:
        assert "whole-book" not in str(err) and n == 40  # a short tape may hold no price at all
        return
    got = {k: [tuple(x) for x in g[["signal_row", "entry_row", "exit_row", "side", "entry", "exit", "reason"]].itertuples(index=False)]
           for k, g in trades_of(tape, params, model).groupby("set")}
    totals = run_tape(tape, params, model)
    pick = np.random.default_rng(seed).choice(len(params), min(len(params), 6), replace=False)
    for k in pick:
        q = params.iloc[int(k)]
        rule = model.rule.model_copy(update={"pressure": q.pressure, "lower": q.lower, "upper": q.upper, "depth_multiplier": q.depth_multiplier,
                                             "decision_window_ms": 0})
        want = walk(list(facts(rows, 1, 2, model, rule, entry)), q, model)
        mine = got.get(int(q.set), [])
        assert [w[:4] + (w[6],) for w in want] == [m[:4] + (m[6],) for m in mine]
        np.testing.assert_allclose([w[4:6] for w in want], [m[4:6] for m in mine], rtol=0, atol=1e-9)
        check_totals(want, totals.iloc[int(k)], model.cost_bps * 1e-4)


def check_totals(want: list[tuple], got: pd.Series, cost: float) -> None:
    net = [((x - e) * s - cost * (e + x)) / e * 1e4 for _, _, _, s, e, x, _ in want]
    path = np.concatenate([[0.0], np.cumsum(net)])
    expected = {"trades": len(net), "net_bps": sum(net), "net_sq": sum(v * v for v in net), "max_dd_bps": (np.maximum.accumulate(path) - path).max(),
                "gross": sum((x - e) * s for _, _, _, s, e, x, _ in want), "turnover": sum(e + x for _, _, _, _, e, x, _ in want),
                **{r: sum(w[6] == r for w in want) for r in ("stop", "target", "opposite", "time", "end")}}
    for k, v in expected.items(): assert got[k] == pytest.approx(v, abs=1e-6), k
    assert got["gross_bps"] - got["cost_bps"] == pytest.approx(got["net_bps"], abs=1e-6)
    assert got["win_bps"] + got["loss_bps"] == pytest.approx(got["net_bps"], abs=1e-6)
    assert sum(v > 1e-9 for v in net) <= got["wins"] <= sum(v > -1e-9 for v in net)


def test_the_walk_finds_every_kind_of_exit():
    """The property above means something only if its tapes reach every branch."""
    rng = np.random.default_rng(5)
    model = FillModel(rule=PressureParams(warmup_rows=1, rest_s=0.0, max_spread_bps=500.0), health=HealthConfig(stale_ms=3000, suspect_ms=500), tick=0.05)
    space = sweep_space(lower=0.52, upper=1.0, depth_multiplier=1.0, stop_pct=(0.0005, 0.004), target_pct=(0.0005, 0.004), hold_s=(0, 0.3))
    tape = tape_of("d", "S1", 1, [holey(rng, 3000)], space, model)
    assert (run_tape(tape, sets_frame(space, cell_numbers(space)), model)[["stop", "target", "opposite", "time", "end"]].sum() > 0).all()
