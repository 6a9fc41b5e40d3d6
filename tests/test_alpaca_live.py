"""Sessions at the Alpaca practice venue: a run from the first bar to the report, restarts, refusals, the kill switch."""

import os
import signal
import time
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alpaca_live import begun, conf, folder, journal, market, of_kind, shaped, until, venue

pytest.importorskip("alpaca")

from scalp_nb.live.notebook import Plan, preflight  # noqa: E402
from scalp_nb.order.types import Intent, OrderType, Purpose, Side, Tif, UpdateKind  # noqa: E402
from scalp_nb.practice.alpaca import PracticeServer  # noqa: E402
from scalp_nb.practice.alpaca_orders import AlpacaTerms  # noqa: E402
from scalp_nb.trader.lease import write_kill  # noqa: E402
from scalp_nb.trader.replay import replay_run  # noqa: E402
from scalp_nb.trader.report import load_run, write_results  # noqa: E402
from scalp_nb.trader.session import EXIT_CONFIG, EXIT_OK, EXIT_REFUSED, run_session  # noqa: E402
from scalp_nb.trader.venues import open_venue, shut  # noqa: E402


@pytest.fixture(autouse=True)
def restore_signals():
    kept = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
    yield
    for s, handler in kept.items(): signal.signal(s, handler)


def at(tape: Any, seconds: float) -> datetime:
    "A moment after the tape's first row."
    return datetime.fromtimestamp(int(tape.rows["ts"][0]) / 1e9 + seconds, UTC)


def same_as_venue(run_dir: Path, server: PracticeServer) -> int:
    "The journal's fills are the venue's executions, each once, and no order was sent twice; how many fills."
    truth = server.get("truth")
    fills = [n.data for n in of_kind(run_dir, "note:fill")]
    sent = [c.intent.id for c in of_kind(run_dir, "command:Submit")]
    assert len(sent) == len(set(sent)) and {o["client_order_id"] for o in truth["orders"]} <= set(sent)
    assert len({o["client_order_id"] for o in truth["orders"]}) == len(truth["orders"])
    assert len({f["exec_id"] for f in fills}) == len(fills) == len(truth["executions"])
    assert sum(Decimal(f["qty"]) for f in fills) == sum(Decimal(str(e["qty"])) for e in truth["executions"])
    return len(fills)


def test_a_session_on_generated_bars(tmp_path):
    tape = market(n=5, minutes=19, seed=3)
    cfg = conf(tape, 100.0, **{"data.end": at(tape, 16 * 60), "risk.max_consecutive_losses": 100})
    run_dir = folder(tmp_path, cfg)
    with venue(tape, 100.0) as server:
        assert run_session(cfg, run_dir) == EXIT_OK
        assert same_as_venue(run_dir, server) >= 6
        assert server.get("truth")["positions"] == {}
    end, run = of_kind(run_dir, "run:end")[0], load_run(run_dir)
    assert end["ok"] and end["flat"] and end["differences"] == []
    assert {"stop", "target"} <= set(run.round_trips["reason"])
    assert len(of_kind(run_dir, "event:BarClosed")) >= 10
    assert write_results(run_dir).exists()
    again = replay_run(run_dir)
    assert again.ok and again.commands > 50, again.first


def test_a_killed_session_goes_on_within_ten_seconds(tmp_path):
    tape = market(n=5, minutes=60, seed=3)
    cfg = conf(tape, 40.0, **{"risk.max_consecutive_losses": 100, "exits.stop_pct": 0.004, "exits.target_pct": 0.008})
    run_dir = folder(tmp_path, cfg)
    with venue(tape, 40.0) as server:
        first = begun(run_dir, cfg)
        until(lambda: first.poll() is not None or server.get("truth")["positions"], "a position")
        assert first.poll() is None, first.stderr and first.stderr.read()
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        kept = server.get("truth")
        t0 = time.monotonic()
        second = begun(run_dir, cfg)
        lives = lambda: [r for r in journal(run_dir, "note:entries") if r.data["on"]]  # noqa: E731
        until(lambda: second.poll() is not None or len(lives()) >= 2 and len(of_kind(run_dir, "event:BarClosed")) >= 1, "trading again")
        took = time.monotonic() - t0
        print(f"trading again after {took:.1f} s")
        assert second.poll() is None, second.stderr and second.stderr.read()
        looked = of_kind(run_dir, "note:reconcile")[1]
        second.send_signal(signal.SIGTERM)
        assert second.wait(60) == EXIT_OK
        assert looked.data["differences"] == [] and kept["positions"]
        same_as_venue(run_dir, server)
        assert server.get("truth")["positions"] == {}
    assert of_kind(run_dir, "run:history")[1]["bars"] == of_kind(run_dir, "note:warm_up")[1].data["bars"]
    assert of_kind(run_dir, "note:warm_up")[1].data["short"] == []
    again = replay_run(run_dir)
    assert again.ok, again.first
    assert took <= 10


def order(i: str, symbol: str, sym: int, qty: int, limit: str | None = None, side: Side = Side.BUY) -> Intent:
    kind = OrderType.MARKET if limit is None else OrderType.LIMIT
    return Intent(i, "test", "hand", symbol, sym, side, Purpose.ENTRY, kind, Tif.DAY, Decimal(qty), 0, Decimal(limit) if limit else None)
