"""The `scalp` command against a real control server, and its exit statuses."""
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
from typer.testing import CliRunner

from scalp_nb.feed.errors import ConfigError, ScalpError
from scalp_nb.trader import cli
from scalp_nb.trader.control import Bound, ControlServer, Mailbox, make_app, new_token
from scalp_nb.trader.lease import KILL_FILE, SessionError, birth, read_kill

ROOT = str(Path(__file__).parents[1])


def scalp(*args: str, **env: str):
    r = CliRunner().invoke(cli.app, list(args), env=env or {"SCALP_WHO": ""})
    assert "Traceback" not in r.output, r.output
    return r


def process(*args: str) -> subprocess.CompletedProcess:
    code = "from scalp_nb.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *args], env={**os.environ, "PYTHONPATH": ROOT}, capture_output=True, text=True, check=False)


@pytest.fixture
def live(tmp_path: Path):
    "A folder of runs with one live session 'r1', an ended one and a crashed one."
    box, token = Mailbox(), new_token()
    app = make_app(lambda: {"paused": False, "risk": {"trades": 3}}, box.post, lambda n: [], token, {"x": Bound()})
    for name in ("r1", "ended", "crashed"):
        (tmp_path / name).mkdir()
    (tmp_path / "crashed" / "control.json").write_text(json.dumps({"run": "crashed", "port": 1, "token": "t", "pid": os.getpid(), "birth": "1"}))
    server = ControlServer(app, tmp_path / "r1", token, "r1").start()
    yield tmp_path, box
    server.stop()


def test_help_tells_a_newcomer_where_to_start_and_every_command_explains_itself():
    r = scalp("--help")
    assert r.exit_code == 0 and "First steps" in r.output and "Exit status: 0 done" in r.output
    commands = [c.name or c.callback.__name__ for c in cli.app.registered_commands]
    assert {"run", "verify", "replay", "status", "pause", "resume", "flatten", "kill", "stop", "reset-breaker", "runs", "report",
            "data-quality", "synth"} == set(commands)
    summary = r.output.split("Commands:")[1].split("Exit status")[0]
    assert "..." not in summary  # no summary is cut off
    for c in commands:
        h = scalp(c, "--help")
        assert h.exit_code == 0 and "Usage:" in h.output
    assert scalp().exit_code == 2 and scalp("explode").exit_code == 2 and scalp("pause", "r1").exit_code == 2  # nobody asks


def test_status(live):
    top, _ = live
    r = scalp("--runs-dir", str(top), "status")
    assert r.exit_code == 0 and r.output.startswith("r1  ") and "crashed" not in r.output
    assert json.loads(scalp("--runs-dir", str(top), "status", "--json").output)[0]["run"] == "r1"
    assert scalp("--runs-dir", str(top), "status", "r1").output == "paused: False\nrisk.trades: 3\n"
    assert json.loads(scalp("status", str(top / "r1"), "--json").output) == {"paused": False, "risk": {"trades": 3}}
    assert "no live session" in scalp("--runs-dir", str(top / "ended"), "status").output


def test_status_by_environment_and_unreachable_runs(live):
    top, _ = live
    assert scalp("status", "r1", SCALP_RUNS_DIR=str(top)).exit_code == 0
    for name, words in (("ended", "it has ended"), ("crashed", "its process has ended")):
        r = scalp("--runs-dir", str(top), "status", name)
        assert r.exit_code == 3 and words in r.stderr and r.stderr.startswith("scalp: ") and r.stdout == ""
    r = scalp("--runs-dir", str(top), "status", "nowhere")
    assert r.exit_code == 2 and "crashed, ended, r1" in r.stderr
    assert "none yet" in scalp("--runs-dir", str(top / "no"), "status", "x").stderr


def test_requests_are_queued_under_a_name(live):
    top, box = live
    for command in ("pause", "resume", "flatten", "stop"):
        r = scalp("--runs-dir", str(top), command, "r1", "--who", "asha")
        assert r.exit_code == 0 and re.fullmatch(rf"{command}: queued \(request \w+\)\n", r.output)
    assert scalp("--runs-dir", str(top), "reset-breaker", "r1", "daily_loss", SCALP_WHO="ben").exit_code == 0
    assert "took the kill" in scalp("--runs-dir", str(top), "kill", "r1", "--who", "asha").output
    got = [(p.action, p.who, p.args) for p in box.drain()]
    assert got == [(a, "asha", {}) for a in ("pause", "resume", "flatten", "stop")] + [
        ("reset_breaker", "ben", {"name": "daily_loss"}), ("kill", "asha", {})]
    r = scalp("--runs-dir", str(top), "pause", "r1", "--who", "?!")
    assert r.exit_code == 2 and "who" in r.stderr and box.drain() == []


def test_unconfirmed_kill_is_not_called_done(tmp_path):
    (tmp_path / "control.json").write_text("{")
    r = scalp("kill", str(tmp_path), "--who", "asha")
    assert r.exit_code == 3 and "nothing confirmed it" in r.output and read_kill(tmp_path) == "asha"


def test_runs_lists_what_the_folders_say(live):
    top, _ = live
    (top / "ended" / KILL_FILE).touch()
    (top / "file").touch()
    lines = scalp("--runs-dir", str(top), "runs").output.splitlines()
    assert sorted(lines) == ["crashed  crashed", "ended  ended, killed by file KILL", "r1  live"]
    assert scalp("runs", str(top)).output.splitlines() == lines
    assert "no runs below" in scalp("runs", str(top / "crashed")).output
    assert scalp("runs", str(top / "nowhere")).exit_code == 2
    (top / "crashed" / "control.json").write_text("{")
    assert cli.run_state(top / "crashed") == "crashed" and birth(os.getpid())


def module(monkeypatch, name: str, **attributes) -> None:
    "Stand in for a room that has its own tests."
    m = types.ModuleType(name)
    for k, v in attributes.items():
        setattr(m, k, v)
    monkeypatch.setitem(sys.modules, name, m)


def test_run_hands_over_its_arguments_and_status(tmp_path, monkeypatch):
    seen = []
    module(monkeypatch, "scalp_nb.trader.session", main=lambda argv: seen.append(argv) or 4)
    cfg = tmp_path / "c.yaml"
    assert scalp("run", str(cfg)).exit_code == 2
    cfg.write_text("")
    assert scalp("run", str(cfg), "--set", "run.seed").exit_code == 2 and seen == []
    assert scalp("run", str(cfg), "--set", "run.seed=7", "--set", "a.b=c").exit_code == 4
    assert scalp("run", str(cfg)).exit_code == 4
    assert seen == [[str(cfg), "--set", "run.seed=7", "--set", "a.b=c"], [str(cfg)]]


def test_replay_and_report(tmp_path, monkeypatch):
    answers = {"a": None, "b": "record 7: Submit differs"}
    module(monkeypatch, "scalp_nb.trader.replay", first_difference=lambda p: answers[p.name])
    module(monkeypatch, "scalp_nb.trader.report", report_text=lambda p: f"report of {p.name}")
    for name in answers:
        (tmp_path / name).mkdir()
    good, bad = (scalp("--runs-dir", str(tmp_path), "replay", n) for n in "ab")
    assert (good.exit_code, good.output) == (0, "the replay gives the same commands\n")
    assert (bad.exit_code, bad.output) == (1, "record 7: Submit differs\n")
    assert scalp("--runs-dir", str(tmp_path), "report", "a").output == "report of a\n"


def test_verify_finds_a_changed_record(tmp_path):
    store = pytest.importorskip("scalp_nb.trader.store", reason="the store is not merged yet")
    run = tmp_path / "r1"
    run.mkdir()
    assert scalp("--runs-dir", str(tmp_path), "verify", "r1").exit_code == 2  # no store
    s = store.Store.open(run / "store.db", "paper", exclusive=True, run="r1")
    for k in range(5):
        s.append("note:signal", k, {"k": k})
    s.commit(True)
    s.close()
    r = scalp("--runs-dir", str(tmp_path), "verify", "r1")
    assert r.exit_code == 0 and r.output.startswith("paper: whole, 5 records")
    import sqlite3
    with sqlite3.connect(run / "store.db") as db:
        for (t,) in db.execute("SELECT name FROM sqlite_master WHERE type='trigger'").fetchall():
            db.execute(f"DROP TRIGGER {t}")
        db.execute("UPDATE journal SET data = replace(data, '3', '4') WHERE seq = 4")
    db.close()
    r = scalp("verify", str(run), "--store", str(run / "store.db"))
    assert r.exit_code == 1 and "record 4" in r.output


def test_synth_and_data_quality(tmp_path):
    pytest.importorskip("scalp_nb.feed.synthetic", reason="the synthetic market is not merged yet")
    pytest.importorskip("scalp_nb.feed.recorder", reason="the recorder is not merged yet")
    r = scalp("synth", str(tmp_path / "data"))
    assert r.exit_code == 0 and "rows" in r.output
    file = next((tmp_path / "data").glob("*.parquet"))
    r = scalp("data-quality", str(file))
    assert r.exit_code == 0 and "crossed" in r.output and "note:" in r.output
    assert scalp("data-quality", str(tmp_path / "absent")).exit_code == 2


def test_exit_codes_of_all_errors():
    from scalp_nb.trader.client import NotAllowed, Refused, SessionGone, SessionUnreachable
    kinds = (ConfigError, ScalpError, SessionError, Refused, SessionGone, SessionUnreachable, NotAllowed)
    assert [cli.exit_code(k("x")) for k in kinds] == [2, 1, 1, 2, 3, 3, 3]


def test_installed_command_prints_one_line_and_a_traceback_only_on_demand(tmp_path):
    r = process("--runs-dir", str(tmp_path), "status", "nowhere")
    assert r.returncode == 2 and r.stdout == "" and r.stderr.count("\n") == 1 and r.stderr.startswith("scalp: run: got 'nowhere'")
    r = process("--debug", "--runs-dir", str(tmp_path), "status", "nowhere")
    assert r.returncode == 1 and "Traceback" in r.stderr and "ConfigError" in r.stderr
    r = process("--help")
    assert r.returncode == 0 and r.stderr == ""


def test_help_loads_nothing_heavy():
    code = ("import sys; import scalp_nb.trader.cli; "
            "print([m for m in ('fastapi', 'httpx', 'uvicorn', 'numpy', 'pandas', 'numba', 'sqlalchemy') if m in sys.modules])")
    r = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": ROOT}, capture_output=True, text=True, check=True)
    assert r.stdout.strip() == "[]"
