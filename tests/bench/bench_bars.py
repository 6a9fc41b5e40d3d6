"""Bars and signals: recordings to bars against pandas, one strategy over a million bars against pandas, and what a row or a bar costs live.

Run: python tests/bench/bench_bars.py [rows]. Medians of 7 runs in one process; the baseline of each ratio is measured in the same run.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parent))
from common import medians

from scalp_nb.feed.bars import BAR, MINUTE, BarBuilder, Bars, build_bars, grid
from scalp_nb.feed.depth import Rows, empty_depth
from scalp_nb.strategy.indicators import over, rsi
from scalp_nb.strategy.protocol import BarRun, bar_strategy, signals

S = 1_000_000_000


def tape(n: int, symbols: int = 20) -> Rows:
    """Trades of some symbols, about four a second each, in order of time."""
    rng = np.random.default_rng(1)
    rows = empty_depth(n)
    rows["ts"] = rows["recv"] = np.cumsum(rng.integers(1, 25_000_000, n))
    rows["sym"] = rng.integers(0, symbols, n)
    rows["ltp"] = np.round(100 + np.cumsum(rng.normal(0, 0.01, n)), 2)
    for k in range(symbols):
        mine = rows["sym"] == k
        rows["volume"][mine] = np.cumsum(rng.integers(0, 50, mine.sum()))
    return rows


def minutes(n: int) -> Bars:
    rng = np.random.default_rng(2)
    bars = np.zeros(n, BAR)
    bars["ts"], bars["volume"] = np.arange(n) * MINUTE, 100
    bars["close"] = 100 * np.exp(np.cumsum(rng.normal(0, 1e-4, n)))
    bars["open"], bars["high"], bars["low"] = bars["close"], bars["close"] * 1.001, bars["close"] * 0.999
    return bars


def pandas_bars(rows: Rows) -> pd.DataFrame:
    """What people write: OHLC and volume by symbol and minute, no late rows, no sessions, no VWAP."""
    frame = pd.DataFrame({"sym": rows["sym"], "minute": rows["ts"] // MINUTE, "ltp": rows["ltp"], "volume": rows["volume"]})
    frame["qty"] = frame.groupby("sym")["volume"].diff().fillna(0.0)
    by = frame.groupby(["sym", "minute"])
    return by.agg(open=("ltp", "first"), high=("ltp", "max"), low=("ltp", "min"), close=("ltp", "last"), qty=("qty", "sum"))


def pandas_cross(close: pd.Series) -> pd.Series:
    side = np.sign(close.rolling(10).mean() - close.rolling(30).mean())
    return side.where(side.ne(side.shift()) & side.shift().notna(), 0)


def show(what: str, unit: str, n: int, ours: Callable[[], object], theirs: Callable[[], object] | None = None, baseline: str = "") -> None:
    mid, low, high = medians(ours)
    line = f"{what:<44} {n / mid:>14,.0f} {unit}/s   median {mid * 1e3:9.2f} ms ({low * 1e3:.2f}..{high * 1e3:.2f})"
    if theirs:
        base = medians(theirs)[0]
        line += f"   {base / mid:6.2f} x {baseline} ({base * 1e3:.2f} ms)"
    print(line, flush=True)


def main() -> None:
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 500_000
    rows, g = tape(n), grid(MINUTE)
    show("minute bars of a recording", "rows", n, lambda: build_bars(rows, g), lambda: pandas_bars(rows), "pandas groupby")
    few = rows[:20_000]
    show("minute bars as rows arrive", "rows", len(few), lambda: BarBuilder(g).push(few))
    bars = minutes(1_000_000)
    sma = bar_strategy("sma_crossover")
    close = pd.Series(bars["close"])
    show("SMA crossover over a frame, checked", "bars", len(bars), lambda: signals(sma, sma.params(), bars),
         lambda: pandas_cross(close), "pandas rolling")
    show("RSI(14) over a frame", "bars", len(bars), lambda: over(rsi(14), bars))
    for name in ("sma_crossover", "rsi_reversion", "bollinger_breakout"):
        s = bar_strategy(name)

        def live(s=s) -> None:  # type: ignore[no-untyped-def]
            run = BarRun(s, s.params())
            for b in bars[:5000]:
                run.push(b)
        show(f"{name} live", "bars", 5000, live)


if __name__ == "__main__":
    main()
