"""What the tests of live sessions at the Alpaca practice venue share: a market that crosses, a venue, a configuration, a journal."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from scalp_nb.feed.bars import MINUTE
from scalp_nb.practice.alpaca import PracticeServer
from scalp_nb.practice.alpaca_orders import AlpacaTerms
from scalp_nb.practice.cli import settings
from scalp_nb.practice.venue import Tape, make_tape, walk_tape
from scalp_nb.trader.config import load_config
from scalp_nb.trader.journal import payload
from scalp_nb.trader.setup import RunConfig
from scalp_nb.trader.store import Store, StoreError

KEYS = ("APCA_API_KEY_ID", "APCA_API_SECRET_KEY", "APCA_API_BASE_URL", "APCA_API_DATA_URL", "APCA_TRADE_STREAM_URL", "APCA_DATA_STREAM_URL",
        "SCALP_PRACTICE_URL", "SCALP_PRACTICE_TOKEN")


def market(n: int = 4, minutes: int = 30, past: int = 60, seed: int = 1, **how: Any) -> Tape:
    "A random walk that begins `past` minutes into the day; the minutes before are history."
    whole = walk_tape(tuple(f"AB{chr(65 + k)}" for k in range(n)), 60 * (past + minutes), seed, **how)
    cut = int(whole.rows["ts"][0]) // MINUTE * MINUTE + past * MINUTE
    return make_tape(whole.rows[whole.rows["ts"] >= cut], whole.universe, whole.bars[whole.bars["ts"] >= cut], whole.bars[whole.bars["ts"] < cut])


def shaped(mid: Any, seed_px: float = 100.0, past: int = 40, size: float = 5000.0) -> Tape:
    "A market with given prices, dollars by second and symbol; its first `past` minutes are history, flat and falling a little."
    n, k = mid.shape
    tape = walk_tape(tuple(f"S{chr(65 + j // 26)}{chr(65 + j % 26)}" for j in range(k)), 60 * past + n, 1, size)
    whole = np.concatenate([seed_px - 0.0005 * np.arange(60 * past)[:, None] * np.ones(k), mid]).round(2)
    rows = tape.rows.copy()
    rows["ltp"] = rows["bid_px"][:, 0] = whole.ravel()
    rows["ask_px"][:, 0] = whole.ravel() + 0.01
    cut, px = int(rows["ts"][0]) // MINUTE * MINUTE + past * MINUTE, whole[:len(whole) // 60 * 60].reshape(-1, 60, k)
    bars = tape.bars.copy().reshape(-1, k)
    for name, value in (("open", px[:, 0]), ("high", px.max(1)), ("low", px.min(1)), ("close", px[:, -1]), ("vwap", px.mean(1))): bars[name] = value
    bars = bars.ravel()
    return make_tape(rows[rows["ts"] >= cut], tape.universe, bars[bars["ts"] >= cut], bars[bars["ts"] < cut])


def waves(n: int, seconds: int) -> Any:
    "Prices that rise for four minutes and fall for four, all symbols together: every turn is a crossing."
    t = np.arange(seconds) % 480
    return 98.8 + 0.003 * np.minimum(t, 480 - t)[:, None] * np.ones(n)


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


def of_kind(run_dir: Path, *kinds: str, account: str = "test") -> list[Any]:
    "What the journal holds of some kinds."
    return [payload(r) for r in Store.open(run_dir / "store.db", account, exclusive=False).records() if r.kind in kinds]


def begun(run_dir: Path, cfg: RunConfig, *args: str) -> "subprocess.Popen[str]":
    "A session in a process of its own, started or resumed."
    return subprocess.Popen([sys.executable, "-m", "scalp_nb.trader.session", str(run_dir / "config.yaml"), str(run_dir), *args],
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def journal(run_dir: Path, *kinds: str, account: str = "test") -> list[Any]:
    "`of_kind` for a run that may not have a store yet."
    try: return of_kind(run_dir, *kinds, account=account)
    except StoreError: return []


def until(look: Callable[[], Any], what: str, timeout: float = 120.0, every: float = 0.02) -> Any:
    "The first true value of `look`."
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if found := look(): return found
        time.sleep(every)
    raise AssertionError(f"not within {timeout:g} s: {what}")
