"""`scalp sweep`, `backtest`, `validate` and `promote` through the real command line: what they print, what they write, and every refusal."""

import json
import os
import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from markets import synthetic
from realdata import realdata
from typer.testing import CliRunner

from scalp_nb import cli
from scalp_nb.feed.recorder import write_parquet
from scalp_nb.research import fanout
from scalp_nb.research.trials import TrialLog
from scalp_nb.trader.promoted import load_promoted

ROOT = str(Path(__file__).parents[1])


def scalp(*args: object, **env: str) -> Any:
    "Run a command in this process; never a traceback."
    r = CliRunner().invoke(cli.app, [str(a) for a in args], env={"SCALP_TRIALS": "", **env}, prog_name="scalp")
    assert "Traceback" not in r.output and (r.exception is None or isinstance(r.exception, SystemExit)), r.output + repr(r.exception)
    return r


def refused(*args: object, says: str) -> None:
    "Exit 2, one message that names the thing, nothing on stdout."
    r = scalp(*args)
    assert r.exit_code == 2 and r.stdout == "" and r.stderr.startswith(f"scalp {args[0]}: ") and says in r.stderr, r.output


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    "Forty short sessions with a planted edge."
    folder, out = tmp_path_factory.mktemp("days"), []
    for n in range(40):
        day = date(2026, 6, 1) + timedelta(n)
        rows, universe = synthetic(1, 900, seed=n, day=day, edge_bps=30.0)
        out.append(folder / f"s{n}.parquet")
        write_parquet(rows, universe, out[-1])
    return out


def recording(path: Path, n: int = 2, change: Any = None, **over: Any) -> Path:
    rows, universe = synthetic(n, 300, **over)
    write_parquet(rows if change is None else change(rows), universe, path)
    return path


AXES = ("--set", "lower=0.6:0.8:0.1", "--set", "stop_pct=0.001,0.002", "--workers", 0)
FAST = ("--gate", "reps=200")


# ---- the way from recordings to a promoted file --------------------------------------------------------------------------------------

def test_sweep_validate_promote(days: list[Path], here: Path) -> None:
    r = scalp("sweep", *days, *AXES, "--cost-bps", 1, "--out", "good", "--top", 3)
    assert r.exit_code == 0, r.output
    assert "40 sessions x 1 symbol x 6 sets: 240 runs" in r.stdout and "in trials.jsonl: 6" in r.stdout and "Best 3 of 6 sets" in r.stdout
    assert "1 bps of costs a side, 100 ms from decision to fill" in r.stdout and "in-sample" in r.stdout
    head = next(x for x in r.stdout.splitlines() if x.startswith("set  "))
    assert head.split() == ["set", "lower", "stop_pct", "trades", "net", "bps", "bps/trade", "cost", "wins", "needed", "sharpe"]
    v = scalp("validate", "good", *FAST)
    assert v.exit_code == 0 and "Gate: PASSED" in v.stdout and "trials counted" in v.stdout and ">= 0.95" in v.stdout
    p = scalp("promote", "good", "--out", "set.yaml", *FAST)
    assert p.exit_code == 0 and 'promoted = "set.yaml"' in p.stdout
    made = load_promoted(here / "set.yaml")
    assert made.passed and made.trials == 6 and made.sessions[0] == date(2026, 6, 1) and len(made.data) == 40
    assert made.parameters["strategy.upper"] == 0.95
    refused("promote", "good", "--out", "set.yaml", says="a new file")
    refused("promote", "good", "--out", "no/such/folder/set.yaml", says="existing folder")
    refused("promote", "good", "--out", "set.txt", says=".yaml, .yml or .json")
    refused("validate", "good", "--set", 99, says="one of the sweep's, 0 to 5")
    refused("validate", "good", "--gate", "alpa=0.1", says="alpa")
    refused("validate", "good", "--gate", "min_sessions=60", says="sessions: got 40; allowed: at least 60")
    refused("validate", "good", "--trials", "lost.jsonl", says="restore the log")
    days[3].rename(here / "away")
    try: refused("validate", "good", says="s3.parquet")
    finally: (here / "away").rename(days[3])


def test_a_set_that_fails_is_told_so_and_written_for_practice_only(days: list[Path], here: Path) -> None:
    assert scalp("sweep", *days, *AXES, "--cost-bps", 40, "--out", "dear").exit_code == 0
    v = scalp("validate", "dear", "--set", 0, *FAST)
    assert v.exit_code == 1 and "Gate: NOT PASSED" in v.stdout and "FAIL" in v.stdout and "- mean session return, bps" in v.stdout
    p = scalp("promote", "dear", "--set", 0, "--out", "set.yaml", *FAST)
    assert p.exit_code == 1 and "did not pass" in p.stderr and not (here / "set.yaml").exists()
    p = scalp("promote", "dear", "--set", 0, "--out", "set.yaml", "--practice", *FAST)
    assert p.exit_code == 0 and "practice only" in p.stdout and not load_promoted(here / "set.yaml", allow_failed=True).passed


def test_a_sweep_is_continued_only_as_it_was(days: list[Path], here: Path) -> None:
    assert scalp("sweep", *days[:2], *AXES, "--out", "r").exit_code == 0
    refused("sweep", *days[:2], *AXES, "--out", "r", says="continue it with --resume")
    (here / "r/units/000001.parquet").unlink()
    refused("validate", "r", "--gate", "min_sessions=25", says="unfinished units")
    r = scalp("sweep", *days[:2], *AXES, "--out", "r", "--resume")
    assert r.exit_code == 0 and "2 sessions: no Sharpe ratio worth the name" in r.stdout
    refused("sweep", *days[:2], *AXES, "--cost-bps", 9, "--out", "r", "--resume", says="changed since it was started: got 'model (")
    assert TrialLog("trials.jsonl").count("pressure") == 6


def test_space_file_and_estimate(days: list[Path], here: Path) -> None:
    Path("space.yaml").write_text("lower: 0.6:0.8:0.05\nstop_pct: [0.001, 0.002]\nsample: 4\nmodel: {latency_ns: 5000000, rule: {rest_s: 10}}\n")
    r = scalp("sweep", days[0], "--space", "space.yaml", "--out", "r", "--workers", 0, "--set", "upper=0.9")
    assert r.exit_code == 0 and "x 4 sets" in r.stdout and "5 ms" in r.stdout and "upper 0.9" in r.stdout, r.output
    e = scalp("sweep", days[0], "--space", "space.yaml", "--estimate", "--workers", 2)
    assert e.exit_code == 0 and "core-hours" in e.stdout
    assert "A year of NSE: 250 sessions x 200 symbols x 22,500 rows = 1,125,000,000 rows" in e.stdout
    assert TrialLog("trials.jsonl").count("pressure") == 4  # an estimate shows no result and counts no trial
    Path("space.yaml").write_text("lovver: 0.6\n")
    refused("sweep", days[0], "--space", "space.yaml", "--out", "x", says="lovver")
    Path("space.yaml").write_text("lower: [0.6\n")
    refused("sweep", days[0], "--space", "space.yaml", "--out", "x", says="space.yaml line")
    refused("sweep", days[0], "--space", "absent.yaml", "--out", "x", says="absent.yaml")


# ---- bad input -----------------------------------------------------------------------------------------------------------------------

def test_sweep_refuses_bad_input(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = recording(here / "good.parquet")
    run = ("sweep", good, "--workers", 0, "--out", "r")
    refused("sweep", good, says="--out results/NAME")
    refused(*run, "--set", "lower=0.9", "--set", "upper=0.8", says="lower 0.9 exceeds upper 0.8")
    refused(*run, "--set", "lower=0.9:0.8:0.1", says="low above high")
    refused(*run, "--set", "lover=0.9", says="depth_multiplier")
    refused(*run, "--set", "lower=high", says="a number")
    refused(*run, "--set", "stop_pct=-0.1", says="stop_pct -0.1")
    refused(*run, "--rule", "levles=5", says="rule.levles")
    refused(*run, "--cost-bps", -1, says="cost_bps")
    refused(*run, "--symbols", "S0,NOPE", says="NOPE")
    refused(*run, "--sample", 5, says="sample of 5 from 1 sets")
    refused(*run, "--workers", -1, says="workers")
    refused("sweep", here / "none.parquet", "--out", "r", says="none.parquet")
    refused("sweep", here, "--out", "r", says=str(here.name))
    assert not Path("r").exists()
    monkeypatch.setattr(fanout, "CONNECT", "1s")
    refused("sweep", good, "--out", "r", "--scheduler", "tcp://127.0.0.1:9", says="scheduler: got 'tcp://127.0.0.1:9'")


def nan_prices(rows: Any) -> Any:
    for side in ("bid", "ask"): rows[f"{side}_px"] = float("nan")
    return rows


@pytest.mark.parametrize("name, says", [("empty", "rows"), ("nan", "prices of S0"), ("torn", "torn.parquet"), ("text", "text.parquet"),
                                        ("other", "symbol in session")])
def test_sweep_and_backtest_refuse_recordings_they_cannot_use(here: Path, name: str, says: str) -> None:
    path = here / f"{name}.parquet"
    if name == "empty": recording(path, change=lambda rows: rows[:0])
    if name == "nan": recording(path, change=nan_prices)
    if name == "torn": path.write_bytes(recording(here / "whole.parquet").read_bytes()[:5000])
    if name == "text": path.write_text("not a recording\n")
    if name == "other":
        recording(here / "a.parquet", 2, day=date(2026, 11, 18))
        recording(path, 1)
        return refused("sweep", here / "a.parquet", path, "--workers", 0, "--out", "r", says=says)
    refused("sweep", path, "--workers", 0, "--out", "r", says=says)
    refused("backtest", path, says=says)


# ---- back-test -----------------------------------------------------------------------------------------------------------------------

def test_backtest_prints_the_report_and_writes_its_tables(here: Path) -> None:
    good = recording(here / "good.parquet")
    r = scalp("backtest", good, "--set", "risk.avoid_first_minutes=0", "--out", "one")
    assert r.exit_code == 0 and "finished flat" in r.stdout and "break-even at the configured stop" in r.stdout
    told = json.loads(Path("one/results.json").read_text())
    trades = pd.read_parquet("one/trades.parquet")
    assert told["fills"] == len(trades) > 0 and told["status"]["ok"] and set(trades["symbol"]) <= {"S0", "S1"}
    refused("backtest", good, "--out", "one", says="a new or empty folder")
    refused("backtest", good, "--set", "risk.avoid_first=0", says="risk.avoid_first")
    refused("backtest", good, "--set", "data.symbols=[NOPE]", says="NOPE")
    refused("backtest", here / "none.yaml", says="none.yaml")
    refused("backtest", good, "--resume", says="several --recording only")
    refused("backtest", good, "--recording", good, "--recording", good, says="--out")
    Path("c.yaml").write_text("risk: {avoid_first_minutes: 0}\n")
    recording(here / "next.parquet", seed=8, day=date(2026, 11, 18))
    many = ("backtest", "c.yaml", "--recording", good, "--recording", "next.parquet", "--out", "two", "--workers", 0)
    r = scalp(*many)
    assert r.exit_code == 0 and [x.split()[0] for x in r.stdout.splitlines()[:3]] == ["session", "good.parquet", "next.parquet"], r.output
    row = next(iter(fanout.frames(fanout.open_results("two")))).iloc[0]
    pd.testing.assert_frame_equal(fanout.backtest_tables(row)["trades"], trades)  # as in one process
    assert scalp(*many, "--resume").stdout == r.stdout
    refused(*many, says="continue it with --resume")


# ---- the whole command ---------------------------------------------------------------------------------------------------------------

def test_help_of_all_commands_and_nothing_heavy_to_show_it() -> None:
    text = scalp("--help").output
    listed = [line.split()[0] for line in text.split("Commands:")[1].split("Exit status")[0].splitlines() if line.strip()]
    later = ["sweep", "backtest", "validate", "promote", "practice", "universe"]
    assert listed[0] == "run" and listed[-6:] == later == list(cli.LATER)
    for c in later:
        h = scalp(c, "--help")
        assert h.exit_code == 0 and h.output.startswith(f"Usage: scalp {c} ") and ("Example" in h.output or c == "practice")
        assert cli.LATER[c].help.rstrip(".") in text
    heavy = ("numpy", "pandas", "numba", "dask", "distributed", "vectorbt", "sqlalchemy", "fastapi", "uvicorn")
    code = f"import sys; from scalp_nb import cli; sys.argv[1:] = ['--help']\ntry: cli.main()\nexcept SystemExit: pass\n" \
           f"print([m for m in {heavy!r} + ('scalp_nb.research.cli',) if m in sys.modules])"
    r = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": ROOT}, capture_output=True, text=True, check=True)
    assert r.stdout.splitlines()[-1] == "[]"


def test_as_a_process(here: Path) -> None:
    good = recording(here / "good.parquet")

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", "from scalp_nb.cli import main; main()", *args], cwd=here, capture_output=True, text=True,
                              env={**os.environ, "PYTHONPATH": ROOT}, check=False)
    r = run("sweep", str(good), "--set", "lower=0.6,0.7", "--out", "r", "--workers", "0")
    assert r.returncode == 0 and r.stderr == "" and "Best 2 of 2 sets" in r.stdout, r.stderr
    r = run("sweep", str(good), "--set", "lower=0.9", "--set", "upper=0.8", "--out", "s")
    assert r.returncode == 2 and r.stdout == "" and r.stderr.count("\n") == 1


def test_real_recordings(here: Path) -> None:
    frog = realdata("lob_equity_us/FROG_2025-04-03_mbp10.zip")
    r = scalp("sweep", frog, "--set", "pressure=displayed", "--set", "lower=0.7,0.8", "--out", "r", "--workers", 0)
    assert r.exit_code == 0 and "Best 2 of 2 sets" in r.stdout
    refused("sweep", frog, "--set", "pressure=whole_book", "--out", "s", "--workers", 0, says="whole-book totals of FROG in session 2025-04-03")
    refused("validate", "r", says="sessions: got 1; allowed: at least 40")


# ---- strategies on bars --------------------------------------------------------------------------------------------------------------

def minutes(path: Path, days: int = 3) -> Path:
    from scalp_nb.research.barsweep import walk_bars
    bars, _ = walk_bars(1, days, reversion=0.4)
    columns = {f: bars[f] for f in ("open", "high", "low", "close", "volume")}
    pd.DataFrame({"timestamp": pd.to_datetime(bars["ts"], utc=True), "symbol": "W0", **columns}).to_parquet(path)
    return path


def test_a_strategy_on_bars_is_swept_and_told_in_the_same_table(here: Path) -> None:
    bars = minutes(here / "bars.parquet")
    grid = ("--set", "fast_period=5,10", "--set", "slow_period=20:30:10")
    run = ("sweep", bars, "--strategy", "sma_crossover", "--venue", "US", *grid, "--workers", 0)
    r = scalp(*run, "--out", "r", "--cost-bps", 1)
    assert r.exit_code == 0, r.output
    assert "sma_crossover: 3 sessions x 1 symbol x 4 sets in r" in r.stdout and "Best 4 of 4 sets" in r.stdout
    head = next(x for x in r.stdout.splitlines() if x.strip().startswith("set "))
    assert head.split()[:4] == ["set", "fast_period", "slow_period", "trades"]
    assert TrialLog("trials.jsonl").count("sma_crossover") == 4
    refused(*run, "--out", "r", says="continue it with --resume")
    refused(*run, "--out", "s", "--estimate", says="--estimate")
    refused(*run, "--out", "s", "--set", "fats=1", says="fats")
    refused("sweep", bars, "--strategy", "sma_crosover", "--venue", "US", "--out", "s", says="did you mean sma_crossover")
    refused("sweep", bars, "--strategy", "sma_crossover", "--out", "s", says="--venue")
    refused("sweep", bars, "--venue", "US", "--out", "s", says="with --strategy only")
    assert not Path("s").exists()
