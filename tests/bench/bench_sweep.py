"""The threshold sweep against vectorbt and a naive compiled loop in the same run, on the same signals and prices.

    python tests/bench/bench_sweep.py [rows] [--no-vectorbt]

Row-combinations/s = rows of the symbol times parameter sets, over wall time. `kernel` starts from the tape, as the naive loop and vectorbt
start from prepared arrays; `with tape` adds the pass of the production scan over the depth records. Peak memory is that of a child process that
makes the tape from blocks of depth and runs the whole grid.
"""

# ruff: noqa: E402
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from numba import njit

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from bench.common import medians

from scalp_nb.feed.depth import empty_depth
from scalp_nb.research.sweep import FillModel, cell_numbers, run_tape, sets_frame, sweep_space, tape_of
from scalp_nb.strategy.pressure import PressureParams

START, STEP = 1_795_060_000_000_000_000, 250_000_000
SPACE = sweep_space(lower=(0.60, 0.65, 0.70, 0.75, 0.80), upper=(0.95, 1.0), depth_multiplier=(1.2, 1.5, 2.0, 3.0),
                    stop_pct=(0.001, 0.0015, 0.002, 0.0025, 0.003), target_pct=(0.002, 0.004, 0.006, 0.008, 0.01))
MODEL = FillModel(rule=PressureParams(warmup_rows=1, rest_s=0.0, exit_on_opposite=False), latency_rows=1, tick=0.05)

FINE = sweep_space(lower=np.arange(600, 801) / 1000, upper=(0.95, 1.0), depth_multiplier=np.arange(120, 301) / 100, stop_pct=np.arange(10, 31) / 1e4,
                   target_pct=np.arange(20, 101) / 1e4, hold_s=(60, 120, 300, 600), sample=1000)
FULL = FillModel(rule=PressureParams(warmup_rows=1, rest_s=30.0), latency_ns=100_000_000, tick=0.05)


def blocks(n: int, size: int = 50_000):
    """A liquid stock at four updates a second: a random walk on the tick, pressure that wanders in episodes of about a minute."""
    rng, px, x = np.random.default_rng(11), 20_000, 0.0
    for a in range(0, n, size):
        k = min(size, n - a)
        rows = empty_depth(k)
        rows["ts"] = rows["recv"] = START + STEP * np.arange(a, a + k)
        walk = px + np.cumsum(rng.choice([-1, 0, 1], k, p=[0.25, 0.5, 0.25]))
        px, press, shock = int(walk[-1]), np.empty(k), rng.normal(0, 0.06, k)
        for i in range(k):
            x = x * 0.995 + shock[i]
            press[i] = x
        share = 1 / (1 + np.exp(-press))
        for side, sign in (("bid", -1), ("ask", 1)):
            rows[f"{side}_px"] = ((walk[:, None] + (sign + 1) // 2 + sign * np.arange(5)) * 5) / 100
        rows["bid_qty"] = (share * 1000)[:, None] * rng.uniform(0.5, 1.5, (k, 5))
        rows["ask_qty"] = ((1 - share) * 1000)[:, None] * rng.uniform(0.5, 1.5, (k, 5))
        rows["total_buy"], rows["total_sell"] = np.rint(share * 1e6), np.rint((1 - share) * 1e6)
        rows["ltp"] = rows["bid_px"][:, 0]
        yield rows


@njit(cache=True)
def naive(bid, ask, share, depth, lower, upper, mult, stop, target, out):  # type: ignore[no-untyped-def]
    """Every row of every set: the loop one would write first."""
    for k in range(len(lower)):
        side, entry, total, trades, order, leave = 0, 0.0, 0.0, 0, 0, False
        for i in range(len(bid)):
            if order != 0:
                side, entry, order = order, (ask[i] if order > 0 else bid[i]), 0
                continue
            if side != 0:
                px = bid[i] if side > 0 else ask[i]
                if leave:
                    total += (px - entry) * side / entry
                    trades += 1
                    side, leave = 0, False
                    continue
                gain = (px - entry) * side / entry
                leave = gain <= -stop[k] or gain >= target[k]
                continue
            if lower[k] <= share[i] <= upper[k] and depth[i] > mult[k]: order = 1
            elif lower[k] <= 1 - share[i] <= upper[k] and depth[i] * mult[k] < 1: order = -1
        out[k, 0], out[k, 1] = trades, total


def arrays(n: int):
    got = [(b["bid_px"][:, 0].copy(), b["ask_px"][:, 0].copy(), b["total_buy"] / (b["total_buy"] + b["total_sell"]),
            b["bid_qty"].sum(1) / b["ask_qty"].sum(1)) for b in blocks(n)]
    return [np.concatenate(x) for x in zip(*got, strict=True)]


VBT_SETS = 4

def vectorbt_rate(data, params, engine: str) -> tuple[float, float]:
    """Row-combinations/s of from_signals with stops, signals included, on all rows and the first sets: 100 columns of a million rows take 2.9 GB."""
    import pandas as pd
    import vectorbt as vbt
    bid, ask, share, depth = data
    p = params.iloc[:: len(params) // VBT_SETS][:VBT_SETS]
    vbt.settings["engine"] = engine  # "rust" raises where vectorbt-rust is not installed
    index = pd.date_range("2026-11-20", periods=len(bid), freq="250ms")

    def run():
        long = np.empty((len(bid), len(p)), np.bool_)
        short = np.empty_like(long)
        for k, q in enumerate(p.itertuples()):
            long[:, k] = (q.lower <= share) & (share <= q.upper) & (depth > q.depth_multiplier)
            short[:, k] = (q.lower <= 1 - share) & (1 - share <= q.upper) & (depth * q.depth_multiplier < 1)
        long, short = np.roll(long, 1, 0), np.roll(short, 1, 0)
        pf = vbt.Portfolio.from_signals(pd.Series((bid + ask) / 2, index), entries=pd.DataFrame(long, index),
                                        short_entries=pd.DataFrame(short, index), sl_stop=p.stop_pct.to_numpy()[None, :],
                                        tp_stop=p.target_pct.to_numpy()[None, :],
                                        upon_opposite_entry="ignore", freq="250ms")
        return pf.total_return()
    t, _, _ = medians(run, 3)
    return len(bid) * len(p) / t, t


def child(n: int) -> None:
    tape = tape_of("day", "A", 0, blocks(n), SPACE, MODEL)
    params = sets_frame(SPACE, cell_numbers(SPACE))
    got = run_tape(tape, params, MODEL)
    peak = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))  # ru_maxrss would count the parent's
    print(json.dumps({"mb": int(peak.split()[1]) / 1024, "trades": float(got.trades.mean())}))


def main() -> None:
    args = [a for a in sys.argv[1:] if not a.startswith("-")]
    n = int(args[0]) if args else 1_000_000
    if "--child" in sys.argv: return child(n)
    params = sets_frame(SPACE, cell_numbers(SPACE))
    cells = n * len(params)
    depth = list(blocks(n))
    tape = tape_of("day", "A", 0, depth, SPACE, MODEL)
    prepare, _, _ = medians(lambda: tape_of("day", "A", 0, depth, SPACE, MODEL), 5)
    run, fast, slow = medians(lambda: run_tape(tape, params, MODEL))
    full = tape_of("day", "A", 0, depth, FINE, FULL)
    some = sets_frame(FINE, cell_numbers(FINE))
    hard, _, _ = medians(lambda: run_tape(full, some, FULL))
    depth.clear()
    data, out = arrays(n), np.zeros((len(params), 2))
    cols = [params[c].to_numpy() for c in ("lower", "upper", "depth_multiplier", "stop_pct", "target_pct")]
    loop, _, _ = medians(lambda: naive(*data, *cols, out), 5)
    got = run_tape(tape, params, MODEL)
    print(f"{n:,} rows x {len(params):,} sets; trades a set: {got.trades.mean():.0f} (naive loop {out[:, 0].mean():.0f}); "
          f"candidate rows {len(tape.candidates['whole_book'].row) / n:.1%}")
    rate = cells / run
    print(f"kernel      {rate / 1e9:8.2f} G row-combinations/s  ({run * 1e3:.1f} ms, {fast * 1e3:.1f}..{slow * 1e3:.1f})")
    print(f"sampled     {n * len(some) / hard / 1e9:8.2f} G row-combinations/s  (no two sets share an entry rule; opposite exits, holding times, "
          f"{run_tape(full, some, FULL).trades.mean():.0f} trades a set)")
    print(f"with tape   {cells / (run + prepare) / 1e9:8.2f} G row-combinations/s  (tape {prepare * 1e3:.0f} ms)")
    print(f"naive loop  {cells / loop / 1e9:8.2f} G row-combinations/s  (kernel is {rate * loop / cells:.1f} times as fast)")
    mem = json.loads(subprocess.run([sys.executable, __file__, str(n), "--child"], capture_output=True, text=True, check=True).stdout)
    print(f"peak memory {mem['mb']:8.0f} MB (child process, tape from blocks and {len(params):,} sets)")
    if "--no-vectorbt" in sys.argv: return
    for engine in ("numba", "rust"):
        try: r, t = vectorbt_rate(data, params, engine)
        except Exception as err:  # the engine is optional: say why it is not here
            print(f"vectorbt {engine}: not measured ({type(err).__name__}: {str(err)[:100]}); `pip install vectorbt[rust]` brings it")
            continue
        print(f"vectorbt {engine:6} {r / 1e6:5.1f} M row-combinations/s  "
              f"({n:,} rows x {VBT_SETS} sets, {t:.2f} s; kernel is {rate / r:,.0f} times as fast)")


if __name__ == "__main__": main()
