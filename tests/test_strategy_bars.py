"""Every bar strategy: live equals vectorised, the future never changes the past, corrections end where the corrected frame does."""

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalp_nb.feed.bars import BAR, BAR_UPDATED, MINUTE, BarBuilder, Bars, grid, latest
from scalp_nb.feed.depth import empty_depth
from scalp_nb.feed.errors import ConfigError
from scalp_nb.strategy.bollinger import BollingerParams
from scalp_nb.strategy.combine import MODES, CombinedRun, CombineParams, Member, combined
from scalp_nb.strategy.indicators import INPUTS, Stream, atr, bollinger, ema, macd, over, rsi, settling_bars, sma, stdev
from scalp_nb.strategy.protocol import BarParams, BarRun, VolScale, bar_strategy, get, names, signals, warmup_bars
from scalp_nb.strategy.rsi import RsiParams
from scalp_nb.strategy.sma import SmaParams

RUNS = settings(max_examples=30, deadline=None)


def walk(seed: int, n: int, kind: str = "walk") -> Bars:
    """Bars of a random price: a walk in ticks, one with long stand-stills, one with jumps, or cheap and dear stocks."""
    rng = np.random.default_rng(seed)
    step = rng.normal(0, 1e-3, n)
    if kind == "still":
        step *= np.repeat(rng.integers(0, 2, n // 25 + 1), 25)[:n]
    if kind == "jumps":
        step += np.where(rng.random(n) < 0.02, rng.normal(0, 0.05, n), 0)
    px = rng.choice([0.5, 100.0, 70_000.0]) * np.exp(np.cumsum(step))
    px = np.round(px / 0.05) * 0.05 if px.min(initial=100.0) > 50 else px
    b = np.zeros(n, BAR)
    b["ts"] = np.cumsum(rng.choice([1, 1, 1, 1, 4, 1000], n)) * MINUTE
    b["close"], b["open"] = px, np.r_[px[:1], px[:-1]]
    top, low = np.maximum(b["open"], px), np.minimum(b["open"], px)
    b["high"], b["low"] = top * (1 + rng.random(n) * 1e-3), low * (1 - rng.random(n) * 1e-3)
    b["volume"], b["vwap"] = rng.integers(0, 1000, n), px
    return b


VOL = st.one_of(st.none(), st.builds(VolScale, estimate=st.sampled_from(["atr", "stdev"]), period=st.integers(2, 40), reference=st.just(0.001),
                                     thresholds=st.just(True), exits=st.booleans(), size=st.booleans()))
COMMON: dict[str, Any] = {"vol": VOL, "allow_short": st.booleans(), "exit_on_opposite": st.booleans(), "stop_loss_pct": st.sampled_from([None, 1.0]),
                          "take_profit_pct": st.sampled_from([None, 2.0])}
PAIRS = st.sampled_from([(), ((10, 30),), ((10, 30), (20, 50))])
PARAMS = st.one_of(
    st.builds(SmaParams, fast_period=st.integers(2, 9), slow_period=st.integers(10, 29), more_pairs=PAIRS,
              min_gap_bps=st.sampled_from([0.0, 2.0]), **COMMON),
    st.builds(RsiParams, period=st.integers(2, 20), entry=st.sampled_from(["leave", "enter"]),
              exit_level=st.sampled_from([None, 50.0, 55.0]), **COMMON),
    st.builds(BollingerParams, period=st.integers(2, 30), width=st.floats(0.5, 3.0), exit_at_middle=st.booleans(), **COMMON))
KINDS = st.sampled_from(["walk", "still", "jumps"])
NAME = {SmaParams: "sma_crossover", RsiParams: "rsi_reversion", BollingerParams: "bollinger_breakout"}


@RUNS
@given(p=PARAMS, seed=st.integers(0, 9999), n=st.integers(0, 400), kind=KINDS)
def test_live_equals_vectorised(p: BarParams, seed: int, n: int, kind: str) -> None:
    s, bars = bar_strategy(NAME[type(p)]), walk(seed, n, kind)
    whole, run = signals(s, p, bars), BarRun(s, p)
    assert b"".join(run.push(b).tobytes() for b in bars) == whole.tobytes()
    said = (whole["side"] != 0) | (whole["exit"] != 0)
    assert not said[:s.warmup(p) - 1].any()
    assert not whole["side"][:warmup_bars(s, p) - 1].any()
    assert ((whole["strength"] >= 0) & (whole["strength"] <= 100)).all() and (whole["size"] > 0).all()
    assert p.allow_short or not (whole["side"] < 0).any()


@RUNS
@given(p=PARAMS, seed=st.integers(0, 9999), n=st.integers(2, 400), data=st.data(), kind=KINDS)
def test_the_future_never_changes_the_past(p: BarParams, seed: int, n: int, data: st.DataObject, kind: str) -> None:
    s, bars = bar_strategy(NAME[type(p)]), walk(seed, n, kind)
    cut, other = data.draw(st.integers(1, n)), walk(seed + 1, n, kind)
    whole = signals(s, p, bars)
    assert signals(s, p, bars[:cut]).tobytes() == whole[:cut].tobytes()
    other["ts"] += bars["ts"][cut - 1]
    assert signals(s, p, np.concatenate([bars[:cut], other]))[:cut].tobytes() == whole[:cut].tobytes()


@RUNS
@given(p=PARAMS, seed=st.integers(0, 9999), n=st.integers(60, 200), back=st.integers(1, 5), every=st.integers(3, 9))
def test_corrected_bars_end_where_the_corrected_frame_does(p: BarParams, seed: int, n: int, back: int, every: int) -> None:
    s, first = bar_strategy(NAME[type(p)]), walk(seed, n)
    final, run = first.copy(), BarRun(s, p, keep=5)
    for i, b in enumerate(first):
        run.push(b)
        assert run.news
        if i % every == 0 and i >= back:
            j = i - back + 1
            final["close"][j] = final["low"][j]
            fixed = final[j].copy()
            fixed["flags"] |= BAR_UPDATED
            got = run.push(fixed)
            assert not run.news and len(run.answers) in (5, i + 1)
            assert got.tobytes() == signals(s, p, final[:i + 1])[-1].tobytes()
    assert run.stale == 0


@RUNS
@given(p=PARAMS, seed=st.integers(0, 9999), n=st.integers(50, 600), late=st.integers(0, 60), share=st.floats(0, 0.2))
def test_from_late_ticks_to_the_signal_of_the_last_bar(p: BarParams, seed: int, n: int, late: int, share: float) -> None:
    """Ticks, some of them late, through builder and run: the run ends where the strategy over the final bars does."""
    rng, s = np.random.default_rng(seed), bar_strategy(NAME[type(p)])
    rows = empty_depth(n)
    rows["recv"] = np.cumsum(rng.integers(1, 3000, n)) * 10_000_000
    rows["ts"] = rows["recv"] - np.where(rng.random(n) < share, rng.integers(0, late + 1, n) * 1_000_000_000, 0)
    rows = rows[rows["ts"] > 0]
    rows["ltp"] = np.round(100 * np.exp(np.cumsum(rng.normal(0, 1e-3, len(rows)))), 2)
    rows["volume"] = np.cumsum(rng.integers(0, 5, len(rows)))
    builder, run = BarBuilder(grid(10_000_000_000), allow_late=60_000_000_000), BarRun(s, p.model_copy(update={"bar_s": 10}), keep=12)
    said: list[Any] = []
    for bar in builder.push(rows):
        said.append(bar)
        run.push(bar)
    final = latest(np.array(said, BAR))
    assert run.stale == 0 and builder.dropped.too_late == 0 or late == 60
    if len(final) and not run.stale:
        fresh = BarRun(run.strategy, run.params)
        for bar in final:
            fresh.push(bar)
        more = final[-1].copy()
        for _ in range(1, 4):   # and goes on as it would have
            more["ts"] += 10_000_000_000
            assert run.push(more).tobytes() == fresh.push(more).tobytes()


@RUNS
@given(seed=st.integers(0, 9999), n=st.integers(1, 300), mode=st.sampled_from(MODES), memory=st.integers(1, 10), kind=KINDS,
       members=st.lists(st.sampled_from(sorted(NAME.values())), min_size=1, max_size=4), weights=st.lists(st.floats(0.1, 9), min_size=4, max_size=4))
def test_combinations_live_equal_vectorised_and_causal(seed: int, n: int, mode: Any, memory: int, kind: str, members: list[str],
                                                       weights: list[float]) -> None:
    p = CombineParams(members=tuple(Member(strategy=m, weight=w) for m, w in zip(members, weights, strict=False)), mode=mode, memory=memory)
    bars = walk(seed, n, kind)
    whole, run = combined(p, bars), CombinedRun(p)
    assert b"".join(run.push(b).tobytes() for b in bars) == whole.tobytes()
    assert combined(p, bars[:n // 2]).tobytes() == whole[:n // 2].tobytes()
    alone = [signals(bar_strategy(m), bar_strategy(m).params(), bars) for m in members]
    fresh = np.array([[np.any(a["side"][i] == whole["side"][i]) for a in alone] for i in range(n)]).reshape(n, -1).any(1)
    assert fresh[whole["side"] != 0].all()          # no signal that no member has just given
    if mode == "any" and memory == 1 and n:
        sides = np.array([a["side"] for a in alone])
        np.testing.assert_array_equal(whole["side"], np.where(sides.max(0) > 0, np.where(sides.min(0) < 0, 0, 1), sides.min(0)))


@RUNS
@given(seed=st.integers(0, 9999), n=st.integers(1, 500), period=st.integers(2, 60), kind=KINDS, field=st.sampled_from(INPUTS))
def test_indicators_stream_the_same_bits(seed: int, n: int, period: int, kind: str, field: str) -> None:
    bars = walk(seed, n, kind)
    field = "close" if field == "volume" else field
    for ind in (sma(period, field), ema(period, field), rsi(period), macd(period, period + 7, 9), bollinger(period, 2.0, field), atr(period),
                stdev(period, field)):
        s = Stream(ind)
        live = np.array([s.push(b) for b in bars]).reshape(n, -1).T
        whole = over(ind, bars)
        np.testing.assert_array_equal(live, whole.reshape(live.shape), err_msg=str(ind))
        np.testing.assert_array_equal(over(ind, bars[:n // 2]), whole[:, :n // 2], err_msg=f"{ind} on half the bars")
        assert not np.isfinite(whole[:, :ind.bars - 1]).any()


@RUNS
@given(seed=st.integers(0, 9999), period=st.integers(2, 30))
def test_a_restart_settles_within_the_stated_bars(seed: int, period: int) -> None:
    """Numbers started later differ by no more than the stated share of the range of what they average."""
    bars = walk(seed, 2000)
    for ind in (ema(period), atr(period), sma(period)):
        need = settling_bars(ind, 1e-6) + ind.bars
        spread = np.ptp(bars["close"]) + np.ptp(bars["high"] - bars["low"]) + 1e-9 * bars["close"].max()
        assert abs(over(ind, bars[-need:])[0, -1] - over(ind, bars)[0, -1]) <= 1e-6 * spread


def test_names_and_unknown() -> None:
    assert {"pressure", "sma_crossover", "rsi_reversion", "bollinger_breakout"} <= set(names())
    with pytest.raises(ConfigError, match="did you mean rsi_reversion"):
        get("rsi_reversal")


def test_a_package_adds_a_strategy_by_entry_point(tmp_path: Path) -> None:
    """A distribution with an entry point is found, loaded on demand and run, in a fresh process; two of one name are refused."""
    (tmp_path / "theirs.py").write_text(textwrap.dedent("""
        from scalp_nb.strategy.protocol import CLOSE, OPEN, SIDE, BarParams, BarStrategy

        def rule(state, p, x, out):
            if x[CLOSE] > x[OPEN]: out[SIDE] = 1.0

        GREEN = BarStrategy("green", "Buy after a green bar.", BarParams, rule, lambda p: (), lambda p: (), lambda p: 1)
    """), encoding="utf-8")
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[scalp_nb.strategies]\ngreen = theirs:GREEN\nwrong = theirs:rule\n", encoding="utf-8")
    code = textwrap.dedent("""
        import numpy as np
        from scalp_nb.feed.bars import BAR
        from scalp_nb.feed.errors import ConfigError
        from scalp_nb.strategy.protocol import get, names, signals
        assert "green" in names(), names()
        s = get("green")
        b = np.zeros(2, BAR)
        b["ts"] = [0, 60_000_000_000]
        b["open"], b["high"], b["low"], b["close"] = 1.0, 2.0, 0.5, [2.0, 0.5]
        assert signals(s, s.params(), b)["side"].tolist() == [1, 0]
        try: get("wrong")
        except ConfigError as e: assert "correct the package" in str(e)
        else: raise SystemExit("accepted what is no strategy")
    """)
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": f"{root}:{tmp_path}", "PATH": "", "HOME": str(tmp_path)},
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
