"""What the tests of live sessions at the Alpaca practice venue share: a market that crosses, a venue, a configuration, a journal."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml

from scalp_nb.feed.bars import MINUTE
from scalp_nb.practice.alpaca import PracticeServer
from scalp_nb.practice.alpaca_orders import AlpacaTerms
from scalp_nb.practice.cli import settings
from scalp_nb.practice.venue import Tape, make_tape, walk_tape
from scalp_nb.trader.config import load_config
from scalp_nb.trader.journal import payload
from scalp_nb.trader.setup import RunConfig
from scalp_nb.trader.store import Store

KEYS = ("APCA_API_KEY_ID", "APCA_API_SECRET_KEY", "APCA_API_BASE_URL", "APCA_API_DATA_URL", "APCA_TRADE_STREAM_URL", "APCA_DATA_STREAM_URL",
        "SCALP_PRACTICE_URL", "SCALP_PRACTICE_TOKEN")


def market(n: int = 4, minutes: int = 30, past: int = 60, seed: int = 1, **how: Any) -> Tape:
    "A random walk that begins `past` minutes into the day; the minutes before are history."
    whole = walk_tape(tuple(f"AB{chr(65 + k)}" for k in range(n)), 60 * (past + minutes), seed, **how)
    cut = int(whole.rows["ts"][0]) // MINUTE * MINUTE + past * MINUTE
    return make_tape(whole.rows[whole.rows["ts"] >= cut], whole.universe, whole.bars[whole.bars["ts"] >= cut], whole.bars[whole.bars["ts"] < cut])


@contextmanager
def venue(tape: Tape, speed: float = 60.0, **how: Any) -> Iterator[PracticeServer]:
    "A practice venue whose address and keys are in the environment, as `scalp practice alpaca` prints them."
    terms = AlpacaTerms(**{"cash": Decimal(100_000), "rate_limit": 100_000, **how.pop("terms", {})})
    kept = {k: os.environ.get(k) for k in KEYS}
    with PracticeServer(tape, terms, speed, **how) as server:
        os.environ.update(settings(server))
        try: yield server
        finally:
            for k, v in kept.items():
                os.environ.pop(k, None)
                if v is not None: os.environ[k] = v


def wire(speed: float) -> dict[str, Any]:
    "Limits that count real seconds or the venue's, for a clock that runs faster."
    return {"health.max_lag_ms": 120_000, "health.stale_ms": 180_000, "health.connection_stale_ms": 180_000, "exits.entry_timeout_ms": 60_000,
            "exits.reprice_ms": 30_000, "session.drain_timeout_s": 300.0, "session.reconcile_s": 60.0,
            "venue.alpaca.feed": {"batch_gap_s": 0.05, "silence_s": 5.0}}


def conf(tape: Tape, speed: float = 60.0, **over: Any) -> RunConfig:
    "The SMA crossover on the venue's minute bars."
    base = {"venue.broker": "alpaca_practice", "run.account": "test", "data.symbols": list(tape.universe.symbols),
            "strategy": {"name": "sma_crossover", "params": {"fast_period": 5, "slow_period": 15}, "bars_from": "venue"},
            "sizing": {"mode": "percent", "balance_pct": 0.05}, "exits.stop_pct": 0.001, "exits.target_pct": 0.002,
            "risk.max_orders_per_second": 10, "risk.avoid_last_minutes": 5}
    return load_config(RunConfig, None, base | wire(speed) | over)


def folder(tmp_path: Path, cfg: RunConfig, name: str = "r") -> Path:
    run_dir = tmp_path / name
    run_dir.mkdir(parents=True)
    (run_dir / "config.yaml").write_text(yaml.safe_dump(json.loads(cfg.model_dump_json())))
    return run_dir


def of_kind(run_dir: Path, *kinds: str) -> list[Any]:
    "What the journal holds of some kinds."
    return [payload(r) for r in Store.open(run_dir / "store.db", "test", exclusive=False).records() if r.kind in kinds]
