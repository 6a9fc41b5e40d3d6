"""The gate against noise, against planted edges, and its statistics against independent implementations."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from gatebooks import COMMAND, CONFIG, Kind, book_line, planned, stored
from gatetapes import PARAMS, Tape, days, matrix, matrix_verdict, passed, tape_evidence, tape_verdict
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from scalp_nb.research.splits import combinatorial, out_of_sample, purged_folds, walk_forward
from scalp_nb.research.stats import (
    Floats,
    StatsError,
    block_length,
    bootstrap_interval,
    deflated_sharpe,
    long_run_std,
    moments,
    overfitting_probability,
    sharpes,
    superior_ability,
)
from scalp_nb.research.trials import ResearchError
from scalp_nb.research.validate import (
    Evidence,
    GateConfig,
    PromotionError,
    gate,
    load_promoted,
    make_trades,
    overfitting_checks,
    promote,
    random_entry,
    sample_checks,
    stability,
    touch_of,
)

CFG = GateConfig(reps=300)
ROOT = Path(__file__).resolve().parents[1]


def not_more_often(k: int, n: int, rate: float) -> bool:
    "Is k of n compatible with a rate of at most `rate`?"
    return bool(stats.binomtest(k, n, rate, alternative="greater").pvalue > 0.01)


# ---- the gate measured ----------------------------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_noise_passes_at_most_alpha() -> None:
    "200 searches over correlated sets without an edge; the same noise passes a test that ignores the search far too often."
    verdicts = [matrix_verdict(matrix(s, common=c), CFG) for c in (0.0, 0.5) for s in range(100)]
    assert not_more_often(sum(v.passed for v in verdicts), 200, CFG.alpha)
    naive = sum(passed(v.checks)["its lower bound, 95% one-sided"] for v in verdicts)
    assert not not_more_often(naive, 200, CFG.alpha)


@pytest.mark.slow
def test_tapes_without_an_edge_pass_at_most_alpha() -> None:
    "60 tapes, 45 sets traded on each, no costs at all: the hardest case. tests/bench/measure_gate.py has 400 of each kind."
    assert not_more_often(sum(tape_verdict(Tape(s, 0, 0, 0), CFG, 100).passed for s in range(60)), 60, CFG.alpha)


@pytest.mark.slow
def test_power_grows_with_the_edge() -> None:
    weak, middle, strong = ([tape_verdict(Tape(1000 + s, e), CFG, 100).passed for s in range(12)] for e in (0, 7, 16))
    assert sum(weak) == 0 < sum(middle) <= sum(strong)
    assert sum(strong) >= 11


def test_random_entries_are_calibrated() -> None:
    "One set named beforehand, no edge: p-values up to 10 % come at most as often as that."
    tapes = [Tape(500 + s, 0, 1, 0, sessions=20, rows=500) for s in range(80)]
    p = [random_entry(t.trade(22), t.paths, 99, seed=k).p_value for k, t in enumerate(tapes)]
    assert not_more_often(sum(x <= 0.1 for x in p), 80, 0.1)
    assert 0.3 < np.mean(p) < 0.7


def test_benchmark_trades_as_the_search_does() -> None:
    "The kernel of the random entries, given the search's own entries, returns the search's own mean."
    tape = Tape(3, 8)
    for k in (0, 22, 44):
        t = tape.trade(k)
        assert random_entry(t, tape.paths, 20).actual_bps == pytest.approx(t.gross.mean() * 1e4, rel=1e-12)


def test_latency_and_cost_stress_bite() -> None:
    v = gate(tape_evidence(Tape(4, 14), 100), CFG)
    value = {c.name: c.value for c in v.checks}
    plain, costs2, costs4, slow2, slow4 = (value[n] for n in ("mean session return, bps", "mean with costs x2, bps", "mean with costs x4, bps",
                                                             "mean with latency x2, bps", "mean with latency x4, bps"))
    assert plain is not None and costs2 is not None and costs4 is not None and slow2 is not None and slow4 is not None
    assert plain > costs2 > costs4 and costs2 - costs4 == pytest.approx(2 * (plain - costs2))
    assert slow4 < plain


def test_more_trials_never_help() -> None:
    x = matrix(5, edge=0.6)
    best = int(sharpes(x).argmax())
    d = [deflated_sharpe(x[:, best], sharpes(x), n).probability for n in (40, 100, 1000, 10**6)]
    assert d == sorted(d, reverse=True) and d[0] > d[-1]


# ---- statistics against another way of computing them -----------------------------------------------------------------------------------

def naive_cscv(x: Floats, blocks: int) -> tuple[float, float]:
    "The paper's algorithm, step by step on the rows themselves."
    parts = np.array_split(np.arange(len(x)), blocks)
    logits, losses = [], []
    for pick in combinations(range(blocks), blocks // 2):
        seen = x[np.concatenate([parts[i] for i in pick])]
        unseen = x[np.concatenate([parts[i] for i in range(blocks) if i not in pick])]
        best = int(np.argmax(seen.mean(0) / seen.std(0, ddof=1)))
        out = unseen.mean(0) / unseen.std(0, ddof=1)
        w = stats.rankdata(out)[best] / (x.shape[1] + 1)
        logits.append(np.log(w / (1 - w)))
        losses.append(out[best] <= 0)
    return float((np.array(logits) <= 0).mean()), float(np.mean(losses))


@pytest.mark.parametrize(("seed", "sessions", "sets", "blocks"), [(1, 40, 6, 8), (2, 43, 7, 6), (3, 61, 15, 10), (4, 24, 2, 4)])
def test_overfitting_probability_is_the_papers(seed: int, sessions: int, sets: int, blocks: int) -> None:
    x = matrix(seed, sessions, sets, edge=0.2)
    got = overfitting_probability(x, blocks)
    assert (got.probability, got.loss) == pytest.approx(naive_cscv(x, blocks), abs=1e-12)


def stationary(rng: np.random.Generator, n: int, block: int) -> np.ndarray:
    "Positions of one stationary-bootstrap sample (Politis, Romano 1994)."
    at = np.empty(n, np.int64)
    for i in range(n): at[i] = rng.integers(n) if i == 0 or rng.random() < 1 / block else (at[i - 1] + 1) % n
    return at


@pytest.mark.parametrize(("seed", "edge", "hopeless"), [(11, 0.0, 0), (12, 0.25, 0), (13, 0.4, 0), (14, 0.2, 60)])
def test_superior_ability_is_hansens(seed: int, edge: float, hopeless: int) -> None:
    "Hansen (2005), equations for the consistent statistic, written out with a bootstrap of our own; hopeless sets do not hide a good one."
    reps, rng = 2000, np.random.default_rng(seed)
    x = np.hstack([matrix(seed, 80, 12, edge=edge), matrix(seed + 1, 80, hopeless, common=0.0, edge=0) - 1e-3 if hopeless else np.empty((80, 0))])
    n, block = len(x), block_length(len(x))
    omega, mean = long_run_std(x, block), x.mean(0)
    centre = np.where(mean >= -omega / np.sqrt(n) * np.sqrt(2 * np.log(np.log(n))), mean, 0.0)
    best = max(0.0, float((np.sqrt(n) * mean / omega).max()))
    draws = np.array([max(0.0, float((np.sqrt(n) * (x[stationary(rng, n, block)].mean(0) - centre) / omega).max())) for _ in range(reps)])
    p = float((draws > best).mean())
    got = superior_ability(x, int((mean / omega).argmax()), reps=reps, seed=5)
    assert got.consistent == pytest.approx(p, abs=4 * np.sqrt(max(p * (1 - p), 0.002) * 2 / reps))
    assert not hopeless or got.upper > got.consistent + 0.2


@pytest.mark.parametrize(("seed", "edge"), [(11, 0.0), (12, 0.3)])
def test_superior_ability_of_the_chosen_is_studentised_each_time(seed: int, edge: float) -> None:
    "Written out resample by resample, with a bootstrap of our own."
    x, reps, rng = matrix(seed, 60, 8, edge=edge), 2000, np.random.default_rng(seed)
    n, block, mean = len(x), block_length(len(x)), x.mean(0)
    centre = np.where(mean >= -long_run_std(x, block) * np.sqrt(2 * np.log(np.log(n)) / n), mean, 0.0)
    chosen, hits = int((mean / x.std(0)).argmax()), 0
    for _ in range(reps):
        y = x[stationary(rng, n, block)]
        hits += ((y.mean(0) - centre) / y.std(0)).max() >= mean[chosen] / x.std(0)[chosen]
    p = hits / reps
    assert superior_ability(x, chosen, reps=reps, seed=5).chosen == pytest.approx(p, abs=4 * np.sqrt(max(p * (1 - p), 0.002) * 2 / reps))


@pytest.mark.slow
def test_superior_ability_keeps_its_level() -> None:
    "The best of 40 sets without an edge in 60 sessions: near 5 %, where Hansen's own studentisation is beyond 8 %."
    got = [superior_ability(x := matrix(50_000 + s, common=0.0), int(sharpes(x).argmax()), reps=200, seed=s) for s in range(200)]
    assert not_more_often(sum(g.chosen <= 0.05 for g in got), 200, 0.06)
    assert not not_more_often(sum(g.consistent <= 0.05 for g in got), 200, 0.08)


def test_long_run_deviation_is_that_of_the_bootstrap() -> None:
    rng = np.random.default_rng(8)
    x = np.convolve(rng.standard_normal(83), [1, 0.8, 0.5, 0.3], "valid")
    means = np.array([x[stationary(rng, len(x), 4)].mean() for _ in range(6000)])
    assert long_run_std(x[:, None], 4)[0] == pytest.approx(means.std() * np.sqrt(len(x)), rel=0.04)


def test_interval_covers_as_often_as_it_says() -> None:
    "90 % intervals for the mean of 120 autocorrelated sessions: the blocks matter, single sessions would cover far less."
    def covered(block: int | None) -> int:
        hits = 0
        for s in range(150):
            x = np.convolve(np.random.default_rng(900 + s).standard_normal(123), [1, 0.8, 0.5, 0.3], "valid")
            i = bootstrap_interval(x, 0.9, block=block, reps=300)
            hits += i.low < 0 < i.high
        return hits
    assert covered(8) >= 117
    assert covered(1) <= covered(8) - 10


EVERY = {
    "moments": lambda x: moments(x[:, 0]), "interval": lambda x: bootstrap_interval(x[:, 0], reps=100),
    "pbo": lambda x: overfitting_probability(x, 4), "deflated": lambda x: deflated_sharpe(x[:, 0], [0.1, 0.2], 9),
    "spa": lambda x: superior_ability(x, 0, reps=100),
    "stability": lambda x: stability(x, 0, np.array([1])), "walk-forward": lambda x: out_of_sample(x, walk_forward(days(len(x)), 2, 1)),
    "purged": lambda x: purged_folds(days(len(x)), 3), "gate": lambda x: gate(plain_evidence(x))}
CHECKS = {"sample": lambda x: sample_checks(x[:, 0], 5, CFG), "overfitting": lambda x: overfitting_checks(x, CFG)}
RNG = np.random.default_rng(4)
FEW = [*(RNG.normal(0, 1e-3, (n, 2)) for n in (0, 1, 2, 3, 5, 12)), np.zeros((12, 2)), np.full((12, 2), 1e-3),
       np.where(np.eye(12, 2) > 0, np.nan, 1e-3)]


def plain_evidence(x: Floats) -> Evidence:
    return Evidence(days(len(x)), x, 0, 2, make_trades(np.arange(len(x)), 0, 1, 1, x[:, 0], 0.0), np.array([1]))


def numbers(thing: object) -> list[float]:
    "Every number in a result."
    if isinstance(thing, float | np.floating): return [float(thing)]
    if isinstance(thing, np.ndarray): return [float(v) for v in thing.ravel()]
    if hasattr(thing, "__dataclass_fields__"): return [v for f in thing.__dataclass_fields__ for v in numbers(getattr(thing, f))]
    return [v for t in thing for v in numbers(t)] if isinstance(thing, list | tuple) else []


@pytest.mark.parametrize("name", EVERY)
def test_too_little_is_refused_never_nan(name: str) -> None:
    "0 to 12 sessions, sessions that never move, holes: a finite answer or a refusal of the research family."
    refused = 0
    for x in FEW:
        with warnings.catch_warnings():
            warnings.simplefilter("error")   # a division by zero on the way counts
            try: assert np.isfinite(numbers(EVERY[name](x))).all()
            except ResearchError: refused += 1
    assert refused >= 2


@pytest.mark.parametrize("name", CHECKS)
def test_what_cannot_be_computed_does_not_pass(name: str) -> None:
    "A check without its figure says why, and fails where it is asked for."
    for x in FEW:
        for c in CHECKS[name](x): assert c.value is None and c.note and not c.passed or c.value is not None and np.isfinite(c.value)


# ---- the stored measurement -----------------------------------------------------------------------------------------------------------

STORED = ROOT / "nbs" / "research" / "gate_power.csv"


def test_the_stored_measurement_says_what_the_gate_promises() -> None:
    "Searches without an edge pass at most as often as stated, and power grows with the edge; nothing of the plan is missing."
    rows = stored(STORED)
    assert {(r["kind"], float(r["edge_bps"]), int(r["seed"])) for r in rows} == set(planned())
    assert STORED.read_text().startswith(f"# {COMMAND}\n")
    def rate(kind: str, edge: float) -> tuple[int, int]:
        got = [int(r["passed"]) for r in rows if (r["kind"], float(r["edge_bps"])) == (kind, edge)]
        return sum(got), len(got)
    walk, book = rate("walk", 0.0), rate("market", 0.0)
    assert walk[1] + book[1] >= 200 and not_more_often(*walk, CONFIG.alpha) and not_more_often(*book, CONFIG.alpha)
    power = [rate("market", e)[0] for e in (8.0, 16.0, 24.0, 32.0)]
    assert power == sorted(power) and power[0] == 0 and power[-1] >= 36


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "edge", "passed"), [("walk", 0.0, "1"), ("market", 20.0, "0"), ("market", 20.0, "1")])
def test_stored_searches_measure_the_same_again(kind: Kind, edge: float, passed: str) -> None:
    "The first such line of the file once more: the same in every character. If it differs, a rule of market, sweep or gate changed: measure again."
    line = next(r for r in stored(STORED) if (r["kind"], float(r["edge_bps"]), r["passed"]) == (kind, edge, passed))
    assert book_line(kind, edge, int(line["seed"])) == line


# ---- splits -----------------------------------------------------------------------------------------------------------------------------

@settings(max_examples=150, deadline=None)
@given(st.integers(4, 60), st.integers(2, 8), st.integers(1, 3), st.integers(0, 3), st.integers(0, 3))
def test_folds_keep_their_distance(n: int, groups: int, test: int, purge: int, embargo: int) -> None:
    try: splits = list(combinatorial(days(n), groups, test, purge, embargo))
    except StatsError: return
    for s in splits:
        gap = s.train[:, None] - s.test[None, :]
        assert not ((gap >= -purge) & (gap <= embargo)).any()
        assert (np.diff(s.train) > 0).all() and (np.diff(s.test) > 0).all()
        left = np.setdiff1d(np.arange(n), np.concatenate([s.train, s.test]))   # nothing left out without a reason
        assert all(((s.test - i <= purge) & (s.test - i > 0) | (i - s.test <= embargo) & (i - s.test > 0)).any() for i in left)


@settings(max_examples=150, deadline=None)
@given(st.integers(2, 80), st.integers(1, 30), st.integers(1, 10), st.integers(0, 4), st.booleans())
def test_walk_forward_never_looks_ahead(n: int, train: int, test: int, purge: int, anchored: bool) -> None:
    if n < train + purge + test:
        with pytest.raises(StatsError, match=f"at least {train + purge + test}"): walk_forward(days(n), train, test, purge, anchored)
        return
    splits = walk_forward(days(n), train, test, purge, anchored)
    assert np.concatenate([s.test for s in splits]).tolist() == list(range(train + purge, n))
    for s in splits:
        assert s.train[-1] + purge + 1 == s.test[0]
        assert len(s.train) == train if not anchored else s.train[0] == 0


def test_every_session_is_tested_once() -> None:
    assert np.concatenate([s.test for s in purged_folds(days(53), 7, 1, 2)]).tolist() == list(range(53))


# ---- on the synthetic market ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("edge", "seeds", "found"), [(20.0, (7, 8), True), (0.0, (7, 8), False)])
def test_pressure_entries_on_synthetic_depth(edge: float, seeds: tuple[int, ...], found: bool) -> None:
    "Entries where whole-book pressure has just risen above 0.7, on tapes with and without an edge planted behind such pressure."
    from markets import synthetic
    paths, session, entry = [], [], []
    for k, seed in enumerate(seeds):
        rows, _ = synthetic(1, 3600, seed, edge_bps=edge)
        path = touch_of(rows, 0, last=int(rows["recv"][-1]) - 60_000_000_000)
        pressure = rows["total_buy"] / (rows["total_buy"] + rows["total_sell"])
        up = np.flatnonzero((pressure[1:] >= 0.7) & (pressure[:-1] < 0.7)) + 1
        at = rows["recv"][up]
        at = at[(at >= path.first) & (at <= path.last)]
        paths.append(path); session += [k] * len(at); entry += at.tolist()
    assert len(entry) >= 10
    trades = make_trades(session, session, np.array(entry), 1, 0.0, 0.0, 0.0025, 0.01, 60_000_000_000)
    p = random_entry(trades, paths, 400).p_value
    assert p <= 0.01 if found else p > 0.05


# ---- the promoted file ----------------------------------------------------------------------------------------------------------------

def promoted(folder: Path) -> Path:
    ev = tape_evidence(Tape(21, 16), 100)
    v = gate(ev, CFG)
    assert v.passed, v.reasons
    path = folder / "set.yaml"
    promote(path, "pressure", {k: float(x[ev.chosen]) for k, x in PARAMS.items()}, {"tape-21": "0" * 64}, ev, v, 1)
    return path


def test_any_change_of_a_byte_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    "Flip characters all over the file: it is refused, or it still says exactly the same."
    path = promoted(tmp_path)
    good, text = load_promoted(path), path.read_text()
    rng, refused = np.random.default_rng(0), 0
    for i in rng.choice(len(text), 150, replace=False):
        other = tmp_path / "other.yaml"
        other.write_text(text[:i] + chr((ord(text[i]) + 1) % 128 or 65) + text[i + 1:])
        try: assert load_promoted(other) == good
        except PromotionError: refused += 1
    assert refused > 130


def in_copy(copy: Path, path: Path) -> subprocess.CompletedProcess[str]:
    "Load a promoted file with the package in `copy`, with the research libraries out of reach."
    code = ("import sys\nfor m in ('scipy', 'arch', 'statsmodels', 'vectorbt', 'scalp_nb.research'): sys.modules[m] = None\n"
            "from scalp_nb.trader.promoted import load_promoted\n"
            f"print(load_promoted({str(path)!r}).passed)")
    return subprocess.run([sys.executable, "-c", code], cwd=copy, env={**os.environ, "PYTHONPATH": str(copy)}, capture_output=True, text=True)


@pytest.mark.slow
def test_a_changed_strategy_is_refused(tmp_path: Path) -> None:
    "The real package, copied, loads the file; the copy with one rule touched does not. Loading needs none of the research libraries."
    path, copy = promoted(tmp_path), tmp_path / "copy"
    shutil.copytree(ROOT / "scalp_nb", copy / "scalp_nb", ignore=shutil.ignore_patterns("__pycache__"))
    same = in_copy(copy, path)
    assert same.stdout.strip() == "True", same.stderr
    rule = copy / "scalp_nb" / "strategy" / "pressure.py"
    rule.write_text(rule.read_text() + "\n# touched\n")
    changed = in_copy(copy, path)
    assert changed.returncode and "strategy code changed since it was promoted" in changed.stderr


def test_a_verdict_is_json(tmp_path: Path) -> None:
    ev = tape_evidence(Tape(22, 0, sessions=12), 100)
    v = gate(replace(ev, random=None), CFG)
    assert not v.passed and "sessions: 12, needs >= 40" in v.table
    assert json.loads(json.dumps(v.as_dict(), allow_nan=False))["passed"] is False
