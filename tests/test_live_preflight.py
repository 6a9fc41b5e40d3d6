"""Pre-flight checks of the live notebook: each one can fail, and then nothing is started."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_trader_crash import config_for, life, tape  # noqa: F401  (tape is a fixture)

from scalp_nb.live.notebook import Plan, PreflightFailed, plan_run, preflight
from scalp_nb.trader.client import sessions
from scalp_nb.trader.config import InvalidConfig


def plan(tape: Path, tmp_path: Path, run: str = "r", **given: Any) -> Plan:  # noqa: F811
    return plan_run({"recording": str(tape), "run_dir": str(tmp_path / run), **given}, here=tmp_path)


def found(p: Plan) -> dict[str, tuple[bool, str]]:
    return {c.name: (c.ok, c.found) for c in preflight(p).checks}


def test_a_good_plan_passes_every_check(tape, tmp_path):  # noqa: F811
    p = plan(tape, tmp_path)
    checks = preflight(p)
    checks.require()
    assert checks.ok and checks.market is not None and len(checks.table()) == 10
    assert found(p)["run folder"] == (True, "new") and not p.run_dir.exists()


def test_a_recording_that_cannot_be_read_is_named_and_the_rest_is_still_checked(tape, tmp_path):  # noqa: F811
    bad = tmp_path / "bad.parquet"
    bad.write_bytes(tape.read_bytes()[:1000])
    checks = preflight(plan(bad, tmp_path))
    assert not checks.ok and checks.market is None and [c.name for c in checks.checks if not c.ok] == ["recording"]
    with pytest.raises(PreflightFailed, match="recording: "): checks.require()


@pytest.mark.parametrize("given, check, words", [
    ({"session": {"rules_date": "2001-01-02"}}, "rules, fees, calendar", "2001-01-02"),
    ({"symbols": ["NOSUCH"]}, "recording", "NOSUCH"),
    ({"strategy": {"min_footprint": 1.0, "levels": 5}, "venue": {"plan": "gold"}}, "rules, fees, calendar", "gold"),
])
def test_what_would_stop_the_session_is_known_before(tape, tmp_path, given, check, words):  # noqa: F811
    ok, text = found(plan(tape, tmp_path, **given))[check]
    assert not ok and words in text


def test_a_finished_run_is_not_run_again_and_an_unfinished_one_only_as_it_was(tape, tmp_path):  # noqa: F811
    cfg = config_for(tape)
    assert life(cfg, tmp_path / "done") == 0
    assert life(cfg, tmp_path / "cut", crash_at=12) < 0
    same = Plan(cfg, tmp_path / "cut", "test")
    assert found(same)["run folder"][0] and "resumes" in found(same)["run folder"][1]
    for run in ("done", "cut"):
        ok, text = found(plan(tape, tmp_path, run))["run folder"]
        assert not ok and "a new folder" in text


def test_an_account_that_is_being_traded_is_named(tape, tmp_path):  # noqa: F811
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.yaml").write_text(yaml.safe_dump({"data": {"recording": str(tape), "speed": 1.0}}))
    argv = [sys.executable, "-m", "scalp_nb.trader.session", str(other / "config.yaml"), str(other)]
    session = subprocess.Popen(argv, cwd=Path(__file__).parent.parent)
    try:
        for _ in range(600):
            if sessions(tmp_path): break
            time.sleep(0.05)
        ok, text = found(plan(tape, tmp_path))["account"]
        assert not ok and "traded by run other" in text and str(session.pid) in text
    finally:
        session.terminate()
        session.wait(30)
    assert found(plan(tape, tmp_path))["account"][0]


def test_real_money_needs_more_than_one_word(tape, tmp_path):  # noqa: F811
    ok, text = found(plan(tape, tmp_path, live_money=True))["real money"]
    assert not ok and "live.confirm" in text


def test_configuration_file_and_parameters_meet(tape, tmp_path):  # noqa: F811
    risk = {"max_trades_per_day": 3, "max_consecutive_losses": 2}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"data": {"recording": str(tape)}, "risk": risk}))
    p = plan_run({"config": "c.yaml", "risk": {"max_trades_per_day": 4}}, here=tmp_path)
    assert (p.cfg.risk.max_trades_per_day, p.cfg.risk.max_consecutive_losses, p.cfg.data.recording) == (4, 2, tape)
    with pytest.raises(InvalidConfig, match="risk.max_trades_per_day"):
        plan_run({"config": "c.yaml", "risk": {"max_trades_per_day": "4"}}, here=tmp_path)
