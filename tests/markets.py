"""Small markets and runners shared by the trader's tests and benchmarks."""

from datetime import date
from decimal import Decimal
from typing import Any

import numpy as np

from scalp_nb.feed.depth import DEPTH, Rows
from scalp_nb.feed.importers import seen_capabilities
from scalp_nb.feed.instrument import Universe
from scalp_nb.feed.synthetic import SyntheticConfig, SyntheticSymbol, synthetic_market
from scalp_nb.trader.config import load_config
from scalp_nb.trader.events import Command, Control, Note
from scalp_nb.trader.runner import Memory, Runner
from scalp_nb.trader.setup import Market, RunConfig, paper_run

DAY = date(2026, 11, 19)


def synthetic(n_symbols: int = 3, seconds: int = 1800, seed: int = 7, **over: Any) -> tuple[Rows, Universe]:
    """A short synthetic session with frequent pressure episodes."""
    symbols = tuple(SyntheticSymbol(symbol=f"S{i}", price=Decimal(500 + 100 * i)) for i in range(n_symbols))
    return synthetic_market(SyntheticConfig(**{"symbols": symbols, "seconds": seconds, "seed": seed, "day": DAY,
                                               "episode_every_s": 120.0, "episode_s": 40.0, "edge_bps": 20.0, **over}))


def market(rows: Rows, universe: Universe) -> Market:
    return Market(rows, universe, seen_capabilities(rows), DAY, "test")


# the whole session open for entries, quick rests: many decisions in a short tape
BUSY = {"risk.avoid_first_minutes": 0, "risk.max_trades_per_day": 1000, "risk.max_consecutive_losses": 1000,
        "strategy.rest_s": 1.0, "strategy.cooldown_s": 0.5, "exits.time_stop_s": 60.0}


def config(**over: Any) -> RunConfig:
    return load_config(RunConfig, None, BUSY | over)


def run_all(cfg: RunConfig, rows: Rows, universe: Universe, cuts: list[int] | None = None, drain_s: int = 30) -> Runner:
    """Feed a tape, cut where told; `drain_s` before its end ask for a flat end and go on feeding."""
    runner = paper_run(cfg, market(rows, universe), Memory())
    runner.start(int(rows["recv"][0]))
    last = int(np.searchsorted(rows["recv"], rows["recv"][-1] - drain_s * 1_000_000_000))
    edges = [0, *sorted(c for c in cuts or [] if c < last), last]
    for a, b in zip(edges, edges[1:], strict=False):
        if runner.halted is None:
            runner.feed(rows[a:b])
    runner.send(Control(runner.trader.now, "stop", "test", {"policy": "flatten"}))
    runner.feed(rows[last:])
    runner.advance(runner.trader.now + 10_000_000_000)
    return runner


def said(runner: Runner) -> list[tuple[int, Command]]:
    memory = runner.ledger
    assert isinstance(memory, Memory)
    return memory.log


def notes(runner: Runner, kind: str) -> list[dict[str, Any]]:
    return [c.data for _, c in said(runner) if isinstance(c, Note) and c.kind == kind]


def random_tape(rng: np.random.Generator, n: int, n_symbols: int, start: int) -> Rows:
    """Rows with random books, pressures, holes, crossings and clock steps: nothing a market would do."""
    rows = np.zeros(n, DEPTH)
    rows["sym"] = rng.integers(0, n_symbols, n)
    step = rng.choice([1_000_000, 50_000_000, 300_000_000, 7_000_000_000], n, p=[0.3, 0.4, 0.28, 0.02])
    rows["recv"] = start + np.cumsum(step)
    rows["ts"] = rows["recv"] - rng.choice([0, 0, 0, 1_000_000, 2_000_000_000], n)
    rows["seq"] = -1
    mid = 100 + np.cumsum(rng.choice([-0.05, 0, 0, 0.05], n))
    for side, sign in (("bid", -1), ("ask", 1)):
        rows[f"{side}_px"] = np.round((mid[:, None] + sign * 0.05 * np.arange(1, 6)) / 0.05) * 0.05
        rows[f"{side}_qty"] = rng.integers(1, 400, (n, 5))
        rows[f"{side}_orders"] = rng.integers(1, 9, (n, 5))
        rows[f"{side}_px"][rng.random(n) < 0.01] = np.nan
    crossed = rng.random(n) < 0.01
    rows["bid_px"][crossed, 0] = rows["ask_px"][crossed, 0] + 0.05
    rows["ltp"] = np.round(mid / 0.05) * 0.05
    rows["volume"] = np.cumsum(rng.integers(0, 50, n))
    rows["total_buy"] = rng.integers(1, 10_000, n)
    rows["total_sell"] = rng.integers(1, 10_000, n)
    return rows
