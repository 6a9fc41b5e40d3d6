"""The live loop: a feed that gives rows by the clock, the broker listened to in between, books compared in the background."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from markets import BUSY, synthetic

from scalp_nb.feed.recorder import read_recording, write_parquet
from scalp_nb.trader.config import load_config
from scalp_nb.trader.journal import payload
from scalp_nb.trader.replay import replay_run
from scalp_nb.trader.session import EXIT_CONFIG, EXIT_FAILED, EXIT_OK, run_session
from scalp_nb.trader.setup import RunConfig
from scalp_nb.trader.store import Store, StoreError
from scalp_nb.trader.streaming import recorded_rows, recordings


@pytest.fixture(scope="module")
def tape(tmp_path_factory):
    rows, uni = synthetic(n_symbols=2, seconds=300, seed=5, episode_every_s=30.0, episode_s=20.0)
    path = tmp_path_factory.mktemp("tape") / "tape.parquet"
    write_parquet(rows, uni, path)
    return path


pytestmark = pytest.mark.usefixtures("restore_signals")


def conf(tape: Path, speed: float = 100.0, **over):
    return load_config(RunConfig, None, BUSY | {"data.recording": str(tape), "run.account": "test", "exits.time_stop_s": 20.0, "venue.feed": "paced",
                                                "data.speed": speed, "session.reconcile_s": 5.0} | over)


def folder(tmp_path: Path, cfg: RunConfig) -> Path:
    run_dir = tmp_path / "r"
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text(yaml.safe_dump(json.loads(cfg.model_dump_json())))
    return run_dir


def of_kind(run_dir: Path, kind: str):
    return [payload(r) for r in Store.open(run_dir / "store.db", "test", exclusive=False).records() if r.kind == kind]


def test_a_paced_session_trades_reconciles_ends_flat_and_replays(tape, tmp_path):
    cfg = conf(tape)
    run_dir = folder(tmp_path, cfg)
    assert run_session(cfg, run_dir) == EXIT_OK
    assert len(of_kind(run_dir, "note:round_trip")) >= 3
    seen = of_kind(run_dir, "event:Reconciled")
    assert len(seen) >= 10                                   # every 5 s of 300, and at the end
    assert [n.data["differences"] for n in of_kind(run_dir, "note:reconcile")] == [[]]   # the start's; nothing came up later
    end = of_kind(run_dir, "run:end")[0]
    rows = recorded_rows(run_dir)
    assert end["ok"] and end["rows"] <= len(rows) and np.all(np.diff(rows["recv"]) >= 0)
    whole = read_recording(tape).rows
    whole = whole[np.argsort(whole["recv"], kind="stable")]
    first = int(np.flatnonzero((whole["ts"] == rows["ts"][0]) & (whole["sym"] == rows["sym"][0]))[0])
    assert np.array_equal(rows["ts"], whole["ts"][first:first + len(rows)]) and first < 10   # each row once, in order
    again = replay_run(run_dir)
    assert again.ok and again.commands > 20, again.first


def test_a_killed_session_goes_on_where_the_market_is(tape, tmp_path):
    cfg = conf(tape, speed=30.0)
    run_dir = folder(tmp_path, cfg)
    p = subprocess.Popen([sys.executable, "-m", "scalp_nb.trader.session", str(run_dir / "config.yaml"), str(run_dir)],
                         stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    def filled():
        try: return of_kind(run_dir, "note:fill")
        except StoreError: return []   # not there yet
    while not filled():
        assert p.poll() is None and time.monotonic() < deadline, p.stderr and p.stderr.read()
        time.sleep(0.1)
    os.kill(p.pid, signal.SIGKILL)
    p.wait()
    seen = len(recorded_rows(run_dir))
    assert seen > 0
    assert run_session(conf(tape, speed=300.0), run_dir) == EXIT_OK
    assert len(recordings(run_dir)) == 2
    rows = recorded_rows(run_dir)
    assert len(rows) > seen and np.all(np.diff(rows["recv"]) >= 0)   # nothing seen twice, nothing lost
    begins = of_kind(run_dir, "run:begin")
    assert [b["resumed"] for b in begins] == [False, True]
    ids = [f.data["exec_id"] for f in of_kind(run_dir, "note:fill")]
    assert len(ids) == len(set(ids)) >= 2
    again = replay_run(run_dir)
    assert again.ok, again.first


def test_without_a_speed_it_is_refused(tape, tmp_path, capsys):
    cfg = conf(tape, **{"data.speed": None})
    assert run_session(cfg, folder(tmp_path, cfg)) == EXIT_CONFIG
    assert "data.speed" in capsys.readouterr().err


def test_silence_of_the_feed_blocks_entries_and_keeps_exits(tape, tmp_path):
    """A hole of 60 s in the tape: the loop goes on turning, timers run, and the position held into the hole is closed by its time stop."""
    rows = read_recording(tape)
    keep = rows.rows[np.argsort(rows.rows["recv"], kind="stable")]
    t0 = int(keep["recv"][0])
    hole = keep[(keep["recv"] < t0 + 100_000_000_000) | (keep["recv"] > t0 + 160_000_000_000)]
    path = tmp_path / "hole.parquet"
    write_parquet(hole, rows.manifest.universe, path)
    cfg = conf(path)
    run_dir = folder(tmp_path, cfg)
    assert run_session(cfg, run_dir) == EXIT_OK
    entries = [c.intent.ts for c in of_kind(run_dir, "command:Submit") if c.intent.purpose == "entry"]
    assert entries and not [t for t in entries if t0 + 106_000_000_000 < t < t0 + 160_000_000_000]
    clocks = [e.ts for e in of_kind(run_dir, "event:Clock")]
    assert any(t0 + 100_000_000_000 < t < t0 + 160_000_000_000 for t in clocks)   # time passed without rows
    assert replay_run(run_dir).ok


@pytest.mark.parametrize("blind", [True, pytest.param(False, marks=pytest.mark.soak)])
def test_an_emergency_exit_waits_for_the_venue_to_answer(blind, tape, tmp_path, capsys, monkeypatch):
    """A defect with a position open: what closes it is carried out by the clock, with the feed, or without it where the feed is what fails."""
    from scalp_nb.trader import session
    cfg = conf(tape, paper={"order_latency_ns": 500_000_000})
    run_dir = folder(tmp_path, cfg)
    real, broke = session.turn, []

    def turn(r, line, wait_s):
        if r.trader.held and (blind or not broke):
            broke.append(r.trader.now)
            raise ZeroDivisionError("a defect")
        return real(r, line, wait_s)
    monkeypatch.setattr(session, "turn", turn)
    assert run_session(cfg, run_dir) == EXIT_FAILED
    end = of_kind(run_dir, "run:end")[0]
    assert end["flat"] and end["differences"] == []
    assert len(of_kind(run_dir, "run:error")) == len(broke) == 1 + blind
    assert [c.data["who"] for c in of_kind(run_dir, "note:control")] == ["emergency"]
    assert replay_run(run_dir).ok and "a defect" in capsys.readouterr().err
