"""The gate measured: how often it passes searches without an edge (at most alpha), and how often it finds edges of growing strength.

`python tests/bench/measure_gate.py` takes some minutes; `--null 50 --power 10` is quick. Exits 1 when noise passes more often than alpha.
`--books FILE` measures whole searches on synthetic order books instead (feed.synthetic, research.sweep, the gate), about 20 minutes; every
search is a line of FILE, and an interrupted run goes on where it stopped. Study 3 reads that file.
"""

import argparse
import csv
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import numpy as np
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gatebooks import COLUMNS, COMMAND, CONFIG, book_line, planned, stored  # noqa: E402
from gatetapes import Tape, matrix, matrix_verdict, passed, tape_verdict  # noqa: E402

from scalp_nb.research.stats import sharpes, superior_ability  # noqa: E402
from scalp_nb.research.validate import GateConfig, Verdict, random_entry  # noqa: E402


def upper(k: int, n: int, confidence: float = 0.95) -> float:
    "Clopper-Pearson upper bound of a rate."
    return 1.0 if k == n else float(stats.beta.ppf(confidence, k + 1, n - k))


def count(name: str, verdicts: Iterable[Verdict], detail: bool = False) -> tuple[int, int]:
    "Run, print one line and, asked, how often each check alone passed."
    start, n, ok, each = time.perf_counter(), 0, 0, Counter[str]()
    for v in verdicts:
        n, ok = n + 1, ok + v.passed
        each.update({k: int(p) for k, p in passed(v.checks).items()})
    ms = (time.perf_counter() - start) / n * 1e3
    print(f"{name:<52} {ok:4d} of {n:4d} = {ok / n:6.1%}   at most {upper(ok, n):5.1%} (95 %)   {ms:4.0f} ms each", flush=True)
    if detail: print("\n".join(f"    {k:<46} {c / n:6.1%}" for k, c in each.items()), flush=True)
    return ok, n


def books(path: Path, most: int) -> int:
    "Measure whole searches, one line each, until the plan is done or `most` were added."
    have = {(r["kind"], float(r["edge_bps"]), int(r["seed"])) for r in stored(path)}
    todo = [p for p in planned() if p not in have][:most]
    if not path.exists(): path.write_text(f"# {COMMAND}\n" + ",".join(COLUMNS) + "\n")
    elif not path.read_text().endswith("\n"): path.write_text(path.read_text().rpartition("\n")[0] + "\n")
    with path.open("a", newline="") as f:
        out = csv.DictWriter(f, COLUMNS, lineterminator="\n")
        for kind, edge, seed in todo:
            out.writerow(book_line(kind, edge, seed))
            f.flush()
    rows, bad = stored(path), False
    for kind, edge in dict.fromkeys((r["kind"], r["edge_bps"]) for r in rows):
        got = [int(r["passed"]) for r in rows if (r["kind"], r["edge_bps"]) == (kind, edge)]
        k, n = sum(got), len(got)
        low = 0.0 if k == 0 else float(stats.beta.ppf(0.025, k, n - k + 1))
        print(f"{kind:<8} edge {edge:>3} bps: {k:3d} of {n:3d} = {k / n:6.1%}   95 % interval {low:5.1%} to {upper(k, n, 0.975):5.1%}")
        bad |= edge == "0" and bool(stats.binomtest(k, n, CONFIG.alpha, alternative="greater").pvalue < 0.01)
    return 1 if bad else 0


def single(cfg: GateConfig) -> dict[str, Callable[[int], float]]:
    "p-values that should be uniform, or larger, without an edge and without a search."
    def random(method: Literal["shift", "scatter"], spread: float) -> Callable[[int], float]:
        def p(seed: int) -> float:
            tape = Tape(seed, 0, spread, 0)
            return random_entry(tape.trade(22), tape.paths, 199, seed + 1_000_000, method).p_value
        return p
    def spa(sessions: int, sets: int, kind: str) -> Callable[[int], float]:
        def p(seed: int) -> float:
            x = matrix(seed, sessions, sets)
            return float(getattr(superior_ability(x, int(sharpes(x).argmax()), reps=cfg.reps, seed=seed), kind))
        return p
    return {"random entries, shifted": random("shift", 1), "random entries, shifted, no spread": random("shift", 0),
            "random entries, scattered": random("scatter", 1),
            **{f"superior ability, best of {k}, {n} sessions ({kind})": spa(n, k, kind)
               for n, k in ((60, 2), (60, 40), (250, 40)) for kind in ("chosen", "consistent")}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--null", type=int, default=400, help="searches without an edge, of each kind")
    parser.add_argument("--power", type=int, default=60, help="searches at each strength of edge")
    parser.add_argument("--detail", action="store_true", help="how often each check alone passed")
    parser.add_argument("--books", type=Path, metavar="FILE", help="measure whole searches on order books into this file")
    parser.add_argument("--most", type=int, default=100_000, help="with --books: at most this many more")
    args = parser.parse_args()
    if args.books: return books(args.books, args.most)
    cfg = GateConfig(reps=500)
    nulls: dict[str, Callable[[int], Verdict]] = {
        "tapes, no edge, no spread, no fees": lambda s: tape_verdict(Tape(s, 0, 0, 0), cfg),
        "tapes, no edge, spread 1 bp, fees 1 bp": lambda s: tape_verdict(Tape(s), cfg),
        "matrices, no edge, independent sets": lambda s: matrix_verdict(matrix(s, common=0.0), cfg),
        "matrices, no edge, correlation 0.5": lambda s: matrix_verdict(matrix(s), cfg),
        "matrices, no edge, correlation 0.95": lambda s: matrix_verdict(matrix(s, common=0.95), cfg),
        "matrices, no edge, 2 sets, correlation 0.95": lambda s: matrix_verdict(matrix(s, sets=2, common=0.95), cfg),
        "matrices, no edge, correlation 0.5, 250 sessions": lambda s: matrix_verdict(matrix(s, 250), cfg),
    }
    print(f"Noise: passes allowed {cfg.alpha:.0%}")
    rates = [count(name, (f(s) for s in range(args.null)), args.detail) for name, f in nulls.items()]
    bad = [k for k, n in rates if stats.binomtest(k, n, cfg.alpha, alternative="greater").pvalue < 0.01]
    print("\nSingle tests on noise: share of p-values up to alpha (random entries of one set named beforehand)")
    for name, f in single(cfg).items():
        p = np.array([f(30_000 + s) for s in range(args.null)])
        print(f"{name:<52} {(p <= cfg.alpha).mean():6.1%}   p <= 0.5: {(p <= 0.5).mean():6.1%}", flush=True)
    print("\nPower on tapes: 60 sessions, spread 1 bp, fees 1 bp; edge = drift foretold over the holding time by a signal of strength 1")
    for edge in (2, 4, 6, 8, 10, 12, 16):
        count(f"edge {edge} bp", (tape_verdict(Tape(10_000 + s, edge), cfg) for s in range(args.power)), args.detail)
    print("\nPower on matrices: correlation 0.5; edge = Sharpe ratio per session of the best set")
    for sessions in (60, 250):
        for sharpe in np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.7]):
            count(f"{sessions} sessions, Sharpe ratio {sharpe:.1f}",
                  (matrix_verdict(matrix(20_000 + s, sessions, edge=sharpe), cfg) for s in range(args.power)), args.detail)
    print(f"\n{'NOISE PASSES TOO OFTEN' if bad else 'Noise passes no more often than allowed'}")
    return 1 if bad else 0


if __name__ == "__main__": sys.exit(main())
