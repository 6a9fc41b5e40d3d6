"""The shift test at its word: p-values about uniform where nothing leads, small where something was planted, honest where a day trends."""

import numpy as np
import pytest
from markets import synthetic
from scipy.signal import lfilter
from scipy.stats import binom, kstest, spearmanr

from scalp_nb.research.plots import mid_of, pressure_of
from scalp_nb.research.stats import Shifts, StatsError, shift_test
from scalp_nb.strategy.pressure import PressureParams


def slow(rng: np.random.Generator, n: int, keep: float) -> np.ndarray: return lfilter([1], [1, -keep], rng.normal(0, 1, n + 2000))[2000:]


def ahead(px: np.ndarray, k: int) -> np.ndarray: return np.r_[px[k:] - px[:-k], np.full(k, np.nan)]


@pytest.mark.parametrize(("keep", "k", "n", "bursts"), [(0.0, 1, 1000, 0.0), (0.9, 5, 2000, 0.0), (0.97, 20, 10_000, 0.0), (0.97, 60, 15_000, 0.9)])
def test_p_values_are_about_uniform_where_nothing_leads(keep: float, k: int, n: int, bursts: float) -> None:
    p = []
    for seed in range(80):
        rng = np.random.default_rng([7, seed])
        loud = 1 + bursts * np.sin(np.arange(n) * 6.28 / n)   # a loud morning and a quiet afternoon
        p.append(shift_test([(slow(rng, n, keep), ahead(np.cumsum(rng.normal(0, 1, n) * loud), k))], k).p)
    assert kstest(p, "uniform").pvalue > 1e-3
    for level in (0.05, 0.1, 0.2): assert np.sum(np.array(p) <= level) <= binom.isf(1e-4, len(p), level), level


def test_an_ordinary_p_value_would_cry_wolf_on_the_same_series() -> None:
    "A price whose drift changes slowly, as on a day with trends: most rank correlations with an unrelated pressure look certain."
    ordinary, shifted = [], []
    for seed in range(40):
        rng = np.random.default_rng([8, seed])
        x, y = slow(rng, 24_000, 0.98), ahead(np.cumsum(rng.normal(0, 1, 24_000) + slow(rng, 24_000, 0.99)), 20)
        ordinary.append(spearmanr(x[:-20], y[:-20]).pvalue)
        shifted.append(shift_test([(x, y)], 20).p)
    assert np.mean(np.array(ordinary) < 0.05) > 0.7
    assert np.sum(np.array(shifted) <= 0.05) <= binom.isf(1e-4, 40, 0.05)


def of_tape(seed: int, edge: float, symbols: int = 2) -> Shifts:
    "Both definitions would do; the whole book's, 15 s ahead, on a tape of 100 minutes."
    rows, _ = synthetic(symbols, 6000, seed, edge_bps=edge)
    pairs = []
    for k in range(symbols):
        r = rows[rows["sym"] == k]
        at = r["recv"][0] + np.arange(5900) * 1_000_000_000
        i = np.searchsorted(r["recv"], at, side="right") - 1
        pairs.append((pressure_of(r, PressureParams(pressure="whole_book"))[i], ahead(np.log(mid_of(r))[i], 15)))
    return shift_test(pairs, 15)


def test_synthetic_tapes_without_and_with_a_planted_edge() -> None:
    without = np.array([of_tape(seed, 0.0).p for seed in range(24)])
    assert kstest(without, "uniform").pvalue > 1e-3
    assert np.sum(without <= 0.05) <= binom.isf(1e-4, 24, 0.05)
    planted = [of_tape(seed, 20.0) for seed in range(8)]
    assert all(s.value > s.high for s in planted)
    assert max(s.p for s in planted) < 0.05
    assert all(s.p == pytest.approx(1 / (s.independent + 1)) for s in planted)   # nothing among the shifts comes near


def test_symbols_that_move_together_are_one_question() -> None:
    "Ten copies of one symbol are no more evidence than one; ten that differ are."
    rng = np.random.default_rng(9)
    def one() -> tuple[np.ndarray, np.ndarray]:
        x = slow(rng, 4000, 0.95)
        return x, ahead(np.cumsum(rng.normal(0, 1, 4000) + 0.03 * x), 10)
    same, several = one(), [one() for _ in range(10)]
    assert shift_test([same] * 10, 10).p == pytest.approx(shift_test([same], 10).p)
    alone, together = shift_test(several[:1], 10), shift_test(several, 10)
    assert together.high - together.low < 0.5 * (alone.high - alone.low)


@pytest.mark.parametrize("n", [30, 100, 300])
def test_a_recording_too_short_is_refused_not_judged(n: int) -> None:
    rng = np.random.default_rng(10)
    pairs = [(slow(rng, n, 0.95), rng.normal(0, 1, n))]
    with pytest.raises(StatsError, match=r"independent shifts: got .*; allowed: at least 20"): shift_test(pairs, 10)
