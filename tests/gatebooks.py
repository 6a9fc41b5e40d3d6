"""Whole searches on synthetic order books, for measuring the promotion gate: feed.synthetic, swept by research.sweep, judged by research.validate."""

import csv
import tempfile
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Literal

import numpy as np
from markets import synthetic

from scalp_nb.feed.depth import Rows
from scalp_nb.research.evidence import Search, evidence, search
from scalp_nb.research.sweep import FillModel, Session, session_of, sweep_space
from scalp_nb.research.trials import TrialLog
from scalp_nb.research.validate import GateConfig, Verdict, gate
from scalp_nb.strategy.pressure import PressureParams

Kind = Literal["market", "walk"]
SESSIONS, SECONDS = 50, 600
SPACE = sweep_space(lower=(0.55, 0.62, 0.69), depth_multiplier=(1.0, 1.25, 1.5), stop_pct=(0.001, 0.002), target_pct=(0.002, 0.004), hold_s=60.0)
RULE = PressureParams(rest_s=1.0, cooldown_s=0.5, warmup_rows=30, exit_on_opposite=False)
MODELS = {"market": FillModel(rule=RULE, latency_ns=500_000_000, cost_bps=0.5),
          "walk": FillModel(rule=RULE, latency_ns=500_000_000, cost_bps=0.0, tick=0.001)}
CONFIG = GateConfig(reps=500)
REPS = 200  # random-entry lists
COMMAND = "python tests/bench/measure_gate.py --books nbs/research/gate_power.csv"
FIGURES = {"sessions": "sessions", "trades": "trades", "trials": "trials counted", "mean_bps": "mean session return, bps",
           "sharpe": "Sharpe ratio per session", "dsr": "deflated Sharpe ratio", "spa_p": "superior predictive ability, p",
           "pbo": "probability of overfitting", "random_p": "random entries as good, p", "trade_bps": "mean trade, bps net",
           "cost_bps": "cost of a round trip, bps"}
COLUMNS = ("kind", "edge_bps", "seed", "passed", *FIGURES)
# what is measured: kind, planted drift in basis points, searches, first seed
PLAN: tuple[tuple[Kind, float, int, int], ...] = (
    ("walk", 0.0, 240, 1), ("market", 0.0, 200, 1001),
    *(("market", e, 40, 2001 + 100 * i) for i, e in enumerate((8.0, 12.0, 16.0, 20.0, 24.0, 32.0))))


def walking(rows: Rows, seed: int) -> Rows:
    "The book's quantities with the prices of a random walk, and no spread to speak of: nothing to know or to pay, expectation zero."
    out, sigma = rows.copy(), 0.01 / np.sqrt(SECONDS)
    mid = 500 * np.exp(np.cumsum(sigma * np.random.default_rng(seed).standard_normal(len(rows))))[:, None]
    for side, sign in (("bid", -1), ("ask", 1)): out[f"{side}_px"] = (mid.round(3) + sign * (0.001 + 0.05 * np.arange(5))).round(3)
    out["ltp"] = mid[:, 0].round(3)
    return out


def sessions(seed: int, kind: Kind, edge_bps: float, n: int = SESSIONS) -> list[Session]:
    "One symbol, `n` short sessions, each with its own seed."
    out = []
    for k in range(n):
        own = seed * 1000 + k
        rows, uni = synthetic(1, SECONDS, own, edge_bps=edge_bps)
        out.append(session_of((date(2026, 1, 1) + timedelta(k)).isoformat(), walking(rows, own) if kind == "walk" else rows, uni))
    return out


def found(seed: int, kind: Kind, edge_bps: float, n: int = SESSIONS) -> Search:
    "An honest search: every set is counted."
    with tempfile.TemporaryDirectory() as folder:
        return search(sessions(seed, kind, edge_bps, n), SPACE, TrialLog(Path(folder) / "trials.jsonl"), MODELS[kind])


def book_verdict(seed: int, kind: Kind = "market", edge_bps: float = 0.0) -> Verdict:
    "What the gate makes of the best set of one search."
    return gate(evidence(found(seed, kind, edge_bps), reps=REPS, seed=seed), CONFIG)


def book_line(kind: Kind, edge_bps: float, seed: int) -> dict[str, str]:
    "One search as a line of the table."
    v = book_verdict(seed, kind, edge_bps)
    value = {c.name: c.value for c in v.checks}
    figures = {k: "" if value[n] is None else f"{value[n]:.6g}" for k, n in FIGURES.items()}
    return {"kind": kind, "edge_bps": f"{edge_bps:g}", "seed": str(seed), "passed": str(int(v.passed)), **figures}


def planned() -> Iterator[tuple[Kind, float, int]]:
    "Every search to measure, interleaved so that an interrupted run has some of each."
    for i in range(max(n for _, _, n, _ in PLAN)):
        yield from ((kind, edge, first + i) for kind, edge, n, first in PLAN if i < n)


def stored(path: Path) -> list[dict[str, str]]:
    "Lines measured before; comments are left out, an unfinished last line too."
    if not path.exists(): return []
    text = path.read_text().splitlines(keepends=True)
    return [r for r in csv.DictReader(x for x in text if not x.startswith("#") and x.endswith("\n")) if None not in r.values()]
