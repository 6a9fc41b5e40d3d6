"""The sweep on one and two workers, and in one process without any.

    python tests/bench/bench_fanout.py [rows a symbol] [sets]

Recordings are synthetic: 4 sessions of 4 symbols. Wall time of the whole fan-out, cluster start included (some seconds); the first run of each
number of workers compiles and is not counted. The results of all runs are compared byte for byte.
"""

# ruff: noqa: E402
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from markets import synthetic

from scalp_nb.feed.recorder import write_parquet
from scalp_nb.research.fanout import NSE_DAYS, NSE_ROWS, cores, cost_of, cost_text, fan_out, rates_of, sweep_job
from scalp_nb.research.sweep import SweepSpace, session_at, sweep_space
from scalp_nb.research.trials import TrialLog

RUNS = 3


def space(sets: int) -> SweepSpace:
    return sweep_space(lower=[0.55 + 0.01 * k for k in range(30)], depth_multiplier=[1.1 + 0.05 * k for k in range(20)],
                       stop_pct=[0.001 + 0.0001 * k for k in range(20)], target_pct=[0.002, 0.004, 0.006, 0.008, 0.01], sample=sets)


def content(folder: Path) -> list[bytes]:
    return [p.read_bytes() for p in sorted((folder / "units").glob("*.parquet"))]


def main() -> None:
    rows, sets = (int(x) for x in (*sys.argv[1:], 20_000, 20_000)[:2])
    with tempfile.TemporaryDirectory() as tmp:
        top, paths = Path(tmp), []
        for n in range(4):
            got, universe = synthetic(4, round(rows * 1.2), seed=n)
            paths.append(top / f"day{n}.parquet")
            write_parquet(got, universe, paths[-1])
        days = [session_at(p) for p in paths]
        job = sweep_job(days, space(sets), TrialLog(top / "warm.jsonl"), chunk=5_000)
        total = sum(len(s.rows) for s in days if s.rows is not None) * sets
        want, base = None, 0.0
        print(f"{len(job.tasks)} units, {total:.3g} row-sets; {cores()} cores")
        for workers in (0, 1, 2):
            times = []
            for k in range(RUNS + 1):
                name = f"{workers}-{k}"
                start = time.perf_counter()
                fan_out(sweep_job(days, space(sets), TrialLog(top / f"{name}.jsonl"), chunk=5_000), top / name, workers=workers)
                if k: times.append(time.perf_counter() - start)   # the first run compiles
                if want is None: want = content(top / name)
                assert content(top / name) == want, "results differ"
            took = statistics.median(times)
            if workers == 1: base = took
            ratio = f"   {base / took:.2f} times one worker" if workers == 2 else ""
            name = f"{workers} worker{'' if workers == 1 else 's'}" if workers else "no worker"
            print(f"{name:10} {took:6.2f} s  ({min(times):.2f}..{max(times):.2f})  {total / took / 1e9:6.3f} G row-sets/s{ratio}")
        print("results byte for byte the same in all runs")
        rates, _ = rates_of(job.tasks[0])
        print(cost_text("A year of NSE, 1,000 sets", cost_of(1_000, rates, NSE_DAYS, 200, NSE_ROWS, 2), 2))


if __name__ == "__main__": main()
