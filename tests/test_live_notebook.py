"""The live notebook under the real papermill: a finished run, refused parameters, and every way to be interrupted."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from markets import synthetic
from test_live_engine import command
from test_promoted import judged, write_promoted

from scalp_nb.feed.recorder import write_parquet
from scalp_nb.trader.client import SessionClient
from scalp_nb.trader.lease import SessionError
from scalp_nb.trader.replay import replay_run
from scalp_nb.trader.report import RunData, load_run, write_results

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "nbs" / "live" / "live_trading.ipynb"
# many decisions in a short tape: the whole session open for entries, quick rests
BUSY: dict[str, Any] = {"risk": {"avoid_first_minutes": 0, "max_trades_per_day": 1000, "max_consecutive_losses": 1000},
                        "strategy": {"rest_s": 1.0, "cooldown_s": 0.5}}


@pytest.fixture(scope="module")
def tape(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows, uni = synthetic(n_symbols=2, seconds=420, seed=5, episode_every_s=30.0, episode_s=20.0)
    path = tmp_path_factory.mktemp("tape") / "tape.parquet"
    write_parquet(rows, uni, path)
    return path


def papermill(tmp_path: Path, params: dict[str, Any], *args: str, **environ: str) -> "subprocess.Popen[str]":
    "papermill on the live notebook, in its own session; the run folder is tmp_path/run."
    run_dir = tmp_path / "run"
    run_dir.mkdir(exist_ok=True)
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(params))
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JUPYTER_PREFER_ENV_PATH": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1", **environ}
    argv = [*command(), "--engine", "live", "--no-progress-bar", str(NOTEBOOK), str(run_dir / "live_trading.ipynb"), "-f", str(tmp_path / "p.yaml"),
            "-r", "run_dir", str(run_dir), *args]
    return subprocess.Popen(argv, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


def finish(p: "subprocess.Popen[str]", timeout: float = 90) -> tuple[int, str]:
    "Exit status and output."
    try: out, _ = p.communicate(timeout=timeout)
    finally:
        if p.poll() is None: p.kill()
    return p.returncode, out


def until(look: Callable[[], Any], what: str, timeout: float = 60) -> Any:
    "The first true value of `look`."
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if found := look(): return found
        time.sleep(0.05)
    raise AssertionError(f"not within {timeout} s: {what}")


def state(run_dir: Path) -> dict[str, Any]:
    "The session's state, {} while it does not answer."
    try:
        with SessionClient(run_dir) as c: return c.state()
    except SessionError: return {}


def holding(run_dir: Path) -> dict[str, Any]:
    "The session's state once it holds a position that is not being closed."
    s = state(run_dir)
    return s if any(not p["closing"] for p in s.get("positions", [])) else {}


def ended(run_dir: Path) -> RunData | None:
    "The run once its journal has an end."
    if not (run_dir / "store.db").exists(): return None
    run = load_run(run_dir)
    return run if run.end else None


def flat(run: RunData) -> bool:
    "Bought as much as sold, symbol by symbol, and the journal says so."
    left = {s: sum(f.qty if f.side == "BUY" else -f.qty for f in run.fills[run.fills["symbol"] == s].itertuples()) for s in set(run.fills["symbol"])}
    return bool(run.end and run.end["flat"]) and not any(left.values())


def outputs(path: Path) -> str:
    "All text a notebook shows."
    nb = nbformat.read(path, 4)
    return "\n".join(str(o) for c in nb.cells for o in c.get("outputs", []))


def test_exactly_one_parameters_cell_and_papermill_reads_it() -> None:
    nb = nbformat.read(NOTEBOOK, 4)
    assert sum("parameters" in c.metadata.get("tags", []) for c in nb.cells) == 1
    assert not any(c.get("outputs") for c in nb.cells)


def test_a_run_folder_is_complete(tape: Path, tmp_path: Path) -> None:
    "Also with a promoted set that did not pass: on paper it runs, and the notebook says so."
    failed = write_promoted(tmp_path / "set.yaml", judged(None), date(2026, 11, 18), {"lower": 0.69, "target_pct": 0.01})
    rc, out = finish(papermill(tmp_path, {"recording": str(tape), "promoted": str(tmp_path / "set.yaml"), **BUSY}))
    run_dir = tmp_path / "run"
    assert rc == 0, out[-3000:]
    assert {"live_trading.ipynb", "store.db", "config.yaml", "results.json", "session.log", "venue.jsonl"} <= {p.name for p in run_dir.iterdir()}
    results = json.loads((run_dir / "results.json").read_text())
    run = load_run(run_dir)
    assert results["kpis"]["round_trips"] == len(run.round_trips) >= 2 and results["status"]["ok"] and flat(run)
    assert replay_run(run_dir).ok
    nb = nbformat.read(run_dir / "live_trading.ipynb", 4)
    status = [c for c in nb.cells if "live.hold(" in c.source][0].outputs
    assert len(status) == 1 and "finished flat" in status[0].data["text/plain"]   # one line, however often it changed
    figures = [o for c in nb.cells for o in c.get("outputs", []) if "application/vnd.plotly.v1+json" in o.get("data", {})]
    assert len(figures) == 4 and max(len(json.dumps(f)) for f in figures) < 150_000
    shown = outputs(run_dir / "live_trading.ipynb")
    assert results["assumptions"]["parameter_sets_tried"] == 45 and failed.sha256[:12] in results["assumptions"]["promoted_set"]
    assert all(word in shown for word in ("WARNING: failed", "WARNING: unlisted", "NOT PASSED", "random entries as good, p", "break-even win rate"))
    assert all(word in shown for word in ("data hash", "parameter hash", "break-even", "rules, fees, calendar", "real money"))


@pytest.mark.parametrize("args, words", [
    (["-p", "live_money", "false"], ["live_money", "'false'", "true or false"]),
    (["-p", "simbols", "A"], ["simbols", "did you mean 'symbols'?"]),
    (["-y", "{risk: {max_trades: 3}}"], ["risk.max_trades", "did you mean"]),
    (["-y", "{speed: .nan}"], ["speed"]),
    (["-r", "recording", "no/such/file.parquet"], ["no/such/file.parquet", "an existing file"]),
    (["-y", "{live_money: true}"], ["live.confirm", "trade real money on paper"]),
])
def test_bad_parameters_are_refused_by_name_before_anything_starts(tape: Path, tmp_path: Path, args: list[str], words: list[str]) -> None:
    rc, out = finish(papermill(tmp_path, {"recording": str(tape)}, *args))
    assert rc != 0
    assert all(w in out for w in words), out[-2000:]
    assert not (tmp_path / "run" / "store.db").exists()


def test_a_session_that_dies_fails_the_notebook_after_the_report_and_can_be_resumed(tape: Path, tmp_path: Path) -> None:
    params = {"recording": str(tape), **BUSY}
    rc, out = finish(papermill(tmp_path, params, SCALP_CRASH_AT="20"))
    run_dir = tmp_path / "run"
    assert rc == 1 and "SessionFailed" in out and "killed by SIGKILL" in out, out[-2000:]
    assert json.loads((run_dir / "results.json").read_text())["status"]["ok"] is None
    assert "no end in the journal" in outputs(run_dir / "live_trading.ipynb")
    rc, out = finish(papermill(tmp_path, params))
    assert rc == 0, out[-2000:]
    run = load_run(run_dir)
    assert flat(run) and [x.end is None for x in run.lives] == [True, False]


@pytest.mark.slow
@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_drains_and_finishes_the_report(tape: Path, tmp_path: Path, sig: int) -> None:
    p = papermill(tmp_path, {"recording": str(tape), "speed": 10.0, **BUSY})
    run_dir = tmp_path / "run"
    try: seen = until(lambda: holding(run_dir), "a position")
    except AssertionError:
        p.kill(); raise
    p.send_signal(sig)
    rc, out = finish(p)
    assert rc == 0, out[-3000:]
    run = load_run(run_dir)
    assert flat(run) and run.end["rows"] < seen["rows_total"]
    stops = run.controls[run.controls["action"] == "stop"]
    assert "SIGINT to the notebook" in str(stops["args"].iloc[0])
    assert json.loads((run_dir / "results.json").read_text())["status"]["ok"] is True
    assert "asked to stop by" in outputs(run_dir / "live_trading.ipynb")


def kernel_of(p: "subprocess.Popen[str]") -> int:
    "Process id of papermill's kernel."
    out = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(p.pid)], capture_output=True, text=True, check=True).stdout
    return next(int(line.split()[0]) for line in out.splitlines() if "ipykernel" in line)


@pytest.mark.slow
@pytest.mark.parametrize("victim, reason", [("kernel", "without a word"), ("papermill", "without a word"), ("hung kernel", "no heartbeat")])
def test_a_kill_leaves_a_flat_whole_journal(tape: Path, tmp_path: Path, victim: str, reason: str) -> None:
    speed = 5.0
    p = papermill(tmp_path, {"recording": str(tape), "speed": speed, **BUSY})
    run_dir = tmp_path / "run"
    try: until(lambda: holding(run_dir), "a position")
    except AssertionError:
        p.kill(); raise
    kernel = kernel_of(p)
    os.kill(p.pid if victim == "papermill" else kernel, signal.SIGSTOP if victim == "hung kernel" else signal.SIGKILL)
    at = time.monotonic()
    run = until(lambda: ended(run_dir), "the end of the journal", 30)
    waited = time.monotonic() - at
    if victim == "hung kernel": os.kill(kernel, signal.SIGKILL)
    rc, _ = finish(p, 30)
    assert rc != 0
    assert flat(run) and run.verdict.ok
    asked = run.controls[run.controls["action"] == "stop"].iloc[0]
    assert asked["who"] == "lease" and reason in str(asked["args"])
    assert max(run.fills["ts"].max(), run.orders["updated_ts"].max()) - asked["ts"] <= 2_000_000_000   # flat within 2 s of event time of noticing
    assert waited < 15   # a hung kernel is noticed after the lease's five seconds
    assert json.loads(write_results(run_dir).read_text())["status"]["ok"] is True
    assert replay_run(run_dir).ok
