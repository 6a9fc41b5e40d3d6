"""Miniature searches with and without an edge, for measuring the promotion gate: session-return matrices, and tapes traded by real rules."""

from datetime import date, timedelta
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from scalp_nb.research.stats import sharpes
from scalp_nb.research.validate import (
    Check,
    Evidence,
    GateConfig,
    TouchPath,
    Trades,
    Verdict,
    forward_checks,
    gate,
    judge,
    make_trades,
    neighbours,
    random_entry,
    sample_checks,
    selection_checks,
    touch_path,
)

Floats = npt.NDArray[np.float64]
NS = 1_000_000_000
THRESHOLDS, STOPS, TARGETS = (0.8, 1.1, 1.4, 1.7, 2.0), (0.0010, 0.0015, 0.0020), (0.0015, 0.0030, 0.0045)
GRID = np.array(list(product(THRESHOLDS, STOPS, TARGETS)))   # 45 parameter sets: signal threshold, stop, target
PARAMS = {"threshold": GRID[:, 0], "stop": GRID[:, 1], "target": GRID[:, 2]}
HOLD = 120      # rows a position is held at most
LATENCY = 1     # rows between signal and entry


def days(n: int) -> list[date]:
    return [date(2026, 1, 1) + timedelta(i) for i in range(n)]


# ---- matrices: what a search leaves behind, without its trades ------------------------------------------------------------------------

def matrix(seed: int, sessions: int = 60, sets: int = 40, common: float = 0.5, edge: float = 0.0, tails: int = 4) -> Floats:
    """Session returns of correlated parameter sets with Student tails; `edge` is the Sharpe ratio of the middle set, less to both sides."""
    rng = np.random.default_rng(seed)
    scale = np.sqrt((tails - 2) / tails)
    shared, own = (rng.standard_t(tails, (sessions, k)) * scale for k in (1, sets))
    shape = np.exp(-0.5 * ((np.arange(sets) - sets // 2) / (sets / 4)) ** 2)
    return 1e-3 * (edge * shape + np.sqrt(common) * shared + np.sqrt(1 - common) * own)


def matrix_verdict(x: Floats, cfg: GateConfig, trials: int | None = None) -> Verdict:
    """What the statistical part of the gate makes of the best set of a matrix."""
    best = int(sharpes(x).argmax())
    checks = [*sample_checks(x[:, best], cfg.min_trades, cfg), *selection_checks(x, best, trials or x.shape[1], cfg),
              *forward_checks(days(len(x)), x, cfg)]
    return judge(checks, cfg)


# ---- tapes: prices, a signal, and 45 sets traded on them ------------------------------------------------------------------------------

@njit(nogil=True)
def _walk(rng: Any, n: int, edge: float, sigma: float) -> tuple[Any, Any]:
    "A log price and a signal; the signal foretells `edge` (per unit of signal) over the next HOLD rows."
    signal, price = np.empty(n), np.empty(n)
    s, x = rng.standard_normal(), 0.0
    for i in range(n):
        signal[i], price[i] = s, x
        x += sigma * rng.standard_normal() + edge * s / HOLD
        s = 0.98 * s + np.sqrt(1 - 0.98 ** 2) * rng.standard_normal()
    return signal, price


@njit(nogil=True)
def _trade(signal: Any, bid: Any, ask: Any, threshold: float, stop: float, target: float, late: int, rows: Any, sides: Any, gains: Any) -> int:
    "One session of one set: one position at a time; fills rows, sides and gross returns, and returns how many."
    n, k, i = len(signal), 0, 0
    while i + late < n - 1:
        side = 1 if signal[i] >= threshold else -1 if signal[i] <= -threshold else 0
        if side == 0:
            i += 1
            continue
        j = i + late
        entry, gain, m = (ask[j] if side > 0 else bid[j]), 0.0, j + 1
        while m < n:
            gain = side * ((bid[m] if side > 0 else ask[m]) - entry) / entry
            if gain <= -stop or gain >= target or m - j >= HOLD: break
            m += 1
        rows[k], sides[k], gains[k] = j, side, gain
        k += 1
        i = m + 1
    return k


class Tape:
    "Sessions of one symbol, and what every parameter set made of them."

    def __init__(self, seed: int, edge_bps: float = 0.0, spread_bps: float = 1.0, fee_bps: float = 1.0, sessions: int = 60, rows: int = 900,
                 sigma: float = 1.2e-4) -> None:
        rng = np.random.default_rng(seed)
        self.n, self.fee = sessions, fee_bps * 1e-4
        self.signals, self.paths = [], []
        for _ in range(sessions):
            signal, x = _walk(rng, rows, edge_bps * 1e-4, sigma)
            mid, half = 100 * np.exp(x), spread_bps * 0.5e-4
            self.signals.append(signal)
            self.paths.append(touch_path(np.arange(rows) * NS, mid * (1 - half), mid * (1 + half)))

    def trade(self, k: int, late: int = LATENCY) -> Trades:
        "Trades of set `k`."
        out: list[tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64], Floats]] = []
        size = len(self.signals[0])
        rows, sides, gains = np.empty(size, np.int64), np.empty(size, np.int64), np.empty(size)
        for s, (signal, path) in enumerate(zip(self.signals, self.paths, strict=True)):
            m = _trade(signal, path.bid, path.ask, *GRID[k], late, rows, sides, gains)
            out.append((s, rows[:m].copy(), sides[:m].copy(), gains[:m].copy()))
        session = np.repeat([s for s, *_ in out], [len(r) for _, r, *_ in out])
        return make_trades(session, session, np.concatenate([r for _, r, *_ in out]) * NS, np.concatenate([s for *_, s, _ in out]),
                           np.concatenate([g for *_, g in out]), self.fee, GRID[k, 1], GRID[k, 2], HOLD * NS)

    def returns(self, k: int, late: int = LATENCY) -> Floats:
        "Net session returns of set `k`."
        t = self.trade(k, late)
        return np.bincount(t.session, t.net, self.n).astype(np.float64)


def tape_evidence(tape: Tape, reps: int) -> Evidence:
    "An honest search over the grid: the set with the best Sharpe ratio, and all that the gate asks for."
    x = np.column_stack([tape.returns(k) for k in range(len(GRID))])
    best = int(sharpes(x).argmax())
    trades = tape.trade(best)
    paths: list[TouchPath] = tape.paths
    return Evidence(days(tape.n), x, best, len(GRID), trades, neighbours(PARAMS, best),
                    {float(f): tape.returns(best, f * LATENCY) for f in (2, 4)}, random_entry(trades, paths, reps, seed=best))


def tape_verdict(tape: Tape, cfg: GateConfig, reps: int = 200) -> Verdict:
    return gate(tape_evidence(tape, reps), cfg)


def passed(checks: tuple[Check, ...]) -> dict[str, bool]:
    "Which of the judged figures passed."
    return {c.name: c.passed for c in checks if c.passed is not None}
