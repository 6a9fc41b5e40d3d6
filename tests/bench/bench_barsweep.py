"""Five strategies on bars, 31 symbols over a year of minutes, against vectorbt, backtesting.py and a naive compiled loop in the same run.

    python tests/bench/bench_barsweep.py [days] [--no-peers]

The median of 3 timed runs for one set and for 20 sets in vectorbt, a single one after a warm-up for 100 sets and vectorbt over all symbols.
Rates are bars x parameter sets per second of wall time on one core: 390 minutes x 252 days x 31 symbols = 3.05 M bars. Bars are generated (random
walks, the same every time). Every measured call starts from prepared prices with nothing remembered: ours from tapes whose memory is emptied,
vectorbt from a frame of closes, backtesting.py from a frame a symbol. What is computed once: each indicator per distinct setting, each rule per
distinct setting of what it reads; sets that differ in stop and target share the rest. vectorbt's indicators have the same cache within one call.
vectorbt runs one set over all symbols as a matrix; of 100 sets it gets 20 on one symbol, and backtesting.py a part of one symbol's bars: their
rates are by bars x sets of what they ran. Peers use their own indicators and the nearest rule they can express; trades are counted, to compare.
"""

# ruff: noqa: E402
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from numba import njit

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from bench.common import medians

from scalp_nb.research.barsweep import BarFill, BarSpace, BarTape, bar_space, one_set, run_bars, tape_of_bars, walk_bars
from scalp_nb.strategy.combine import CombineParams
from scalp_nb.strategy.protocol import bar_strategy

MODEL = BarFill(half_spread_bps=1, cost_bps=1, flat_at_end=False)
PAIRS = ((5, 15), (10, 30), (20, 50))


def member(strategy: str, **params) -> dict:
    return {"strategy": strategy, "params": params}


def mix(*members: dict) -> CombineParams:
    return CombineParams.model_validate({"members": list(members), "mode": "any"})


def one() -> dict[str, BarSpace]:
    """Each strategy with one set."""
    out = {n: one_set(bar_strategy(n).params(), n) for n in ("sma_crossover", "rsi_reversion", "bollinger_breakout")}
    several = bar_strategy("sma_crossover").params(fast_period=5, slow_period=15, more_pairs=PAIRS[1:])
    return {"SMA 10/30": out["sma_crossover"], "SMA three pairs": one_set(several, "sma_crossover"), "RSI 14": out["rsi_reversion"],
            "Bollinger 20": out["bollinger_breakout"], "combination": one_set(mix(*(member(n) for n in out)))}


def hundred() -> dict[str, BarSpace]:
    """Each strategy with 100 sets that differ in the rule, and one with 100 sets of which 25 at a time differ in stop and target alone."""
    exits = {"stop_loss_pct": (0.1, 0.2, 0.3, 0.4, 0.5), "take_profit_pct": (0.2, 0.4, 0.6, 0.8, 1.0)}
    combos = tuple(mix(member("sma_crossover", fast_period=f), member("rsi_reversion", period=r), member("bollinger_breakout", width=w))
                   for f in (5, 8, 10, 15) for r in (7, 10, 14, 21, 28) for w in (1.5, 1.75, 2.0, 2.5, 3.0))
    return {"SMA 10/30": bar_space("sma_crossover", {"fast_period": range(3, 13), "slow_period": range(20, 120, 10)}),
            "SMA three pairs": bar_space("sma_crossover", {"min_gap_bps": np.arange(10) / 4, "fast_period": range(3, 13)}, slow_period=15,
                                         more_pairs=PAIRS[1:]),
            "RSI 14": bar_space("rsi_reversion", {"period": (7, 10, 14, 21), "lower": (20.0, 22.5, 25.0, 27.5, 30.0),
                                                  "upper": (70.0, 72.5, 75.0, 77.5, 80.0)}),
            "Bollinger 20": bar_space("bollinger_breakout", {"period": range(10, 60, 5), "width": np.arange(15, 35, 2) / 10}),
            "combination": BarSpace("combination", combos),
            "SMA, stop x target": bar_space("sma_crossover", {"fast_period": (5, 8, 10, 15), **exits})}


def ours(tapes: list[BarTape], space: BarSpace) -> Callable[[], int]:
    def run() -> int:
        trades = 0
        for t in tapes:
            trades += int(run_bars(t, space, MODEL)["trades"].sum())
            t.known.clear()   # the next run starts with nothing, and 31 memories do not add up
        return trades
    return run


@njit(cache=True)
def naive(open_, close, fast, slow, half, cost):  # type: ignore[no-untyped-def]
    """Both averages, the crossing and the fill at the next open, bar by bar: the loop one would write for this one strategy."""
    trades, total = 0, 0.0
    for k in range(close.shape[0]):
        a = b = side = entry = 0.0
        before, order = 0.0, 0.0
        for i in range(close.shape[1]):
            if order != 0.0:
                if side != 0.0:
                    px = open_[k, i] * (1 - side * half)
                    total += side * (px / entry - 1) - cost * (1 + px / entry)
                    trades += 1
                side, entry, order = order, open_[k, i] * (1 + order * half), 0.0
            a += close[k, i] - (close[k, i - fast] if i >= fast else 0.0)
            b += close[k, i] - (close[k, i - slow] if i >= slow else 0.0)
            if i < slow - 1: continue
            d = a / fast - b / slow
            now = 1.0 if d > 1e-9 * b else -1.0 if -d > 1e-9 * b else 0.0
            if now == 0.0: continue
            if before != 0.0 and now != before: order = now
            before = now
    return trades, total


def vbt_signals(vbt, close, name: str, p: dict) -> tuple:
    """(long entries, long exits, short entries, short exits), each bars x columns, of the rule as vectorbt expresses it."""
    def pair(fast, slow):
        a, b = vbt.MA.run(close, fast, short_name="a"), vbt.MA.run(close, slow, short_name="b")
        x, y = a.ma.to_numpy(), b.ma.to_numpy()
        with np.errstate(invalid="ignore"): up = x > y
        known = ~np.isnan(y)
        turn = np.zeros_like(up)
        turn[1:] = known[:-1] & (up[1:] != up[:-1])
        return turn & up, turn & ~up

    def rsi(period, lower, upper):
        r = vbt.RSI.run(close, period, ewm=True).rsi.to_numpy()
        last = np.vstack([np.full((1, r.shape[1]), np.nan), r[:-1]])
        with np.errstate(invalid="ignore"):
            return (last < lower) & (r >= lower), (last < 50) & (r >= 50), (last > upper) & (r <= upper), (last >= 50) & (r < 50)

    def bands(period, width):
        b = vbt.BBANDS.run(close, period, alpha=width)
        c, m, u, lo = close.to_numpy(), b.middle.to_numpy(), b.upper.to_numpy(), b.lower.to_numpy()
        with np.errstate(invalid="ignore"): above, below, high = c > u, c < lo, c > m
        first = lambda v: v & ~np.vstack([np.ones((1, v.shape[1]), bool), v[:-1]])  # noqa: E731
        return first(above), first(~high), first(below), first(high)
    if name == "SMA 10/30":
        up, down = pair(p.get("fast", 10), p.get("slow", 30))
        return up, down, down, up
    if name == "SMA three pairs":
        net = sum(u.astype(np.int8) - d.astype(np.int8) for u, d in (pair(*x) for x in PAIRS))
        return net > 0, net < 0, net < 0, net > 0
    if name == "RSI 14": return rsi(p.get("period", 14), 30, 70)
    if name == "Bollinger 20": return bands(p.get("period", 20), p.get("width", 2.0))
    up, down = pair(p.get("fast", 10), 30)
    parts = [(up, down, down, up), rsi(p.get("period", 14), 30, 70), bands(20, p.get("width", 2.0))]
    buy, sell = parts[0][0] | parts[1][0] | parts[2][0], parts[0][2] | parts[1][2] | parts[2][2]
    return buy & ~sell, parts[0][1] | parts[1][1] | parts[2][1], sell & ~buy, parts[0][3] | parts[1][3] | parts[2][3]


def vbt_run(vbt, close, open_, sig) -> int:
    late = [np.vstack([np.zeros((1, s.shape[1]), bool), s[:-1]]) for s in sig]   # filled at the next open
    frame = [pd.DataFrame(s, close.index) for s in late]
    pf = vbt.Portfolio.from_signals(close, frame[0], frame[1], frame[2], frame[3], price=open_, fees=1e-4, slippage=1e-4, size=1.0, init_cash=1e7,
                                    upon_opposite_entry="reverse", freq="1min")
    pf.total_return()
    return pf.trades.count().sum()


SETS: dict[str, list[dict]] = {
    "SMA 10/30": [{"fast": f, "slow": s} for f in (5, 8, 10, 12) for s in (20, 30, 50, 80, 100)], "SMA three pairs": [{}] * 20,
    "RSI 14": [{"period": p} for p in range(5, 25)],
    "Bollinger 20": [{"period": p, "width": w} for p in (10, 20, 30, 40) for w in (1.5, 1.75, 2, 2.5, 3)],
    "combination": [{"fast": f, "period": r, "width": w} for f in (5, 10) for r in (7, 14) for w in (1.5, 1.75, 2, 2.5, 3)]}


def vectorbt_rates(engine: str, close: pd.DataFrame, open_: pd.DataFrame) -> dict[str, tuple[float, float, int]]:
    """By strategy: bars/s of one set over all symbols, bars x sets/s of 20 sets on one symbol, trades of one set."""
    import vectorbt as vbt
    vbt.settings["engine"] = engine
    out = {}
    for name in one():
        def single(name=name):
            return vbt_run(vbt, close, open_, vbt_signals(vbt, close, name, {}))
        c, o = close.iloc[:, :1], open_.iloc[:, :1]

        def many(name=name, c=c, o=o):
            found = [vbt_signals(vbt, c, name, p) for p in SETS[name]]
            wide = [np.hstack([f[k] for f in found]) for k in range(4)]
            return vbt_run(vbt, pd.DataFrame(np.repeat(c.to_numpy(), 20, 1), c.index), pd.DataFrame(np.repeat(o.to_numpy(), 20, 1), c.index), wide)
        out[name] = close.size / medians(single, 1)[0], len(c) * 20 / medians(many, 3)[0], int(single())
    return out


def backtesting_rate(bars: np.ndarray) -> float:
    """Bars/s of an SMA crossover in backtesting.py; its strategies are Python called once a bar, so others cost about the same."""
    import talib
    from backtesting import Backtest, Strategy
    frame = pd.DataFrame({f.title(): bars[f] for f in ("open", "high", "low", "close", "volume")}, pd.to_datetime(bars["ts"]))

    class Cross(Strategy):
        def init(self):
            self.a, self.b = self.I(talib.SMA, self.data.Close, 10), self.I(talib.SMA, self.data.Close, 30)

        def next(self):
            if self.a[-1] > self.b[-1] and self.a[-2] <= self.b[-2]:
                self.position.close()
                self.buy(size=1)
            elif self.a[-1] < self.b[-1] and self.a[-2] >= self.b[-2]:
                self.position.close()
                self.sell(size=1)
    test = Backtest(frame, Cross, cash=1e7, commission=1e-4, finalize_trades=True)
    return len(bars) / medians(test.run, 3)[0]


def main() -> None:
    warnings.filterwarnings("ignore")
    args = [a for a in sys.argv[1:] if not a.startswith("-")]
    days = int(args[0]) if args else 252
    bars, _ = walk_bars(31, days, 4, vol=4e-4)
    n = len(bars)
    prepare = medians(lambda: [tape_of_bars("S", bars[bars["sym"] == k], "US") for k in range(31)], 3)[0]
    tapes = [tape_of_bars(f"S{k}", bars[bars["sym"] == k], "US") for k in range(31)]
    print(f"{n:,} bars of 31 symbols; tapes from checked bars in {prepare:.2f} s ({n / prepare / 1e6:.0f} M bars/s), counted in nowhere below")
    open_, close = (np.stack([t.cols[f] for t in tapes]) for f in (0, 3))
    single, all_ = {}, 0.0
    for name, space in one().items():
        run = ours(tapes, space)
        t = medians(run, 3)[0]
        single[name], all_ = (n / t, run()), all_ + t
    loop = medians(lambda: naive(open_, close, 10, 30, 1e-4, 1e-4), 5)[0]
    print(f"naive compiled loop, SMA 10/30 only: {n / loop / 1e6:.0f} M bars/s, {naive(open_, close, 10, 30, 1e-4, 1e-4)[0]:,} trades closed")
    many = {}
    for name, space in hundred().items():
        many[name] = n * space.size / medians(ours(tapes, space), 1)[0]
    peers: dict[str, dict[str, tuple[float, float, int]]] = {}
    if "--no-peers" not in sys.argv:
        index = pd.to_datetime(tapes[0].bars["ts"])
        c, o = pd.DataFrame(close.T, index), pd.DataFrame(open_.T, index)
        for engine in ("numba", "rust"):
            try: peers[engine] = vectorbt_rates(engine, c, o)
            except Exception as err: print(f"vectorbt {engine}: not measured: {type(err).__name__}: {str(err)[:80]}")  # say why
    print(f"\n{'M bars x sets / s':20}{'one set':>9}{'trades':>10}" + "".join(f"{'vbt ' + e:>14}{'ratio':>7}{'trades':>9}" for e in peers))
    for name, (rate, trades) in single.items():
        theirs = (f"{p[name][0] / 1e6:14.2f}{rate / p[name][0]:7.1f}{p[name][2]:9,}" for p in peers.values())
        print(f"{name:20}{rate / 1e6:9.1f}{trades:10,}" + "".join(theirs))
    ours_, whole = 5 * n / all_, [5 / sum(1 / x[0] for x in p.values()) for p in peers.values()]
    print(f"{'all five':20}{ours_ / 1e6:9.1f}{'':10}" + "".join(f"{w / 1e6:14.2f}{ours_ / w:7.1f}{'':9}" for w in whole))
    print(f"\n{'M bars x sets / s':20}{'100 sets':>9}" + "".join(f"{'vbt ' + e:>14}{'ratio':>7}" for e in peers))
    for name, rate in many.items():
        theirs = (f"{p[name][1] / 1e6:14.2f}{rate / p[name][1]:7.1f}" for p in peers.values() if name in p)
        print(f"{name:20}{rate / 1e6:9.1f}" + "".join(theirs))
    if "--no-peers" not in sys.argv:
        part = tapes[0].bars[:20_000]
        rate = backtesting_rate(part)
        print(f"\nbacktesting.py, SMA 10/30 on {len(part):,} bars: {rate / 1e6:.3f} M bars/s; ours one set "
              f"{single['SMA 10/30'][0] / rate:,.0f} times, 100 sets {many['SMA 10/30'] / rate:,.0f} times as fast")


if __name__ == "__main__":
    main()
