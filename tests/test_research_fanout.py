"""The fan-out: the same bytes whatever the number of workers, and nothing lost when workers, the parent or the log's moment die."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
from markets import synthetic

from scalp_nb.feed.recorder import write_parquet
from scalp_nb.research import fanout
from scalp_nb.research.fanout import Job, code_of, fan_out, frames, open_results, publish, settle, sweep_job
from scalp_nb.research.sweep import FillModel, Session, session_at, summary, sweep, sweep_space
from scalp_nb.research.trials import ResearchError, TrialLog

ROOT = Path(__file__).resolve().parents[1]
SPACE = sweep_space(lower=[0.6, 0.7, 0.8], depth_multiplier=[1.2, 1.5], stop_pct=[0.001, 0.002])
MODEL = FillModel(latency_ns=100_000_000)


def recordings(folder: Path, n: int = 2) -> list[Session]:
    out = []
    for i in range(n):
        rows, universe = synthetic(2, 600, seed=i)
        write_parquet(rows, universe, folder / f"day{i}.parquet")
        out.append(session_at(folder / f"day{i}.parquet"))
    return out


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> list[Session]:
    return recordings(tmp_path_factory.mktemp("recordings"))


OWN = "from dataclasses import replace\nfrom scalp_nb.strategy.sma import SMA_CROSSOVER\nMINE = replace(SMA_CROSSOVER, name='fanned_sma')\n"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    "A Dask scheduler for all tests of this file, two workers; `fanned.py` is on their Python path."
    from distributed import LocalCluster
    folder = tmp_path_factory.mktemp("own")
    (folder / "fanned.py").write_text(OWN)
    with pytest.MonkeyPatch.context() as m:
        m.syspath_prepend(str(folder))
        m.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(ROOT)]))
        with LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0", silence_logs=50,
                          scheduler_kwargs={"dashboard": False}, memory_limit=0) as c: yield c


def on(cluster: Any, workers: int) -> str:
    "The scheduler's address, once it has so many workers."
    cluster.scale(workers)
    until = time.monotonic() + 60
    while len(cluster.scheduler.workers) != workers and time.monotonic() < until: time.sleep(0.05)
    assert len(cluster.scheduler.workers) == workers
    return str(cluster.scheduler_address)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted((folder / "units").iterdir())}


def job(sessions: list[Session], log: Path, chunk: int = 5) -> Job:
    return sweep_job(sessions, SPACE, TrialLog(log), MODEL, chunk=chunk)


# ---- work that misbehaves ------------------------------------------------------------------------------------------------------------

def square(task: tuple[int, str, str]) -> pd.DataFrame:
    "A unit; kills its worker: with 'once' where no mark is left yet, with 'always' every time."
    n, mode, mark = task
    time.sleep(0.05)
    if mode == "always" or (mode == "once" and not Path(mark).exists()):
        if mode == "once": Path(mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return pd.DataFrame({"n": [n], "square": [n * n]})


def squares(modes: dict[int, str], mark: Path, n: int = 12, **over: Any) -> Job:
    tasks = [(i, modes.get(i, ""), str(mark)) for i in range(n)]
    return Job(**{"name": "squares", "tasks": tasks, "fn": square, "key": lambda t: f"square of {t[0]}", "identity": {"v": "1"}} | over)


# ---- results -------------------------------------------------------------------------------------------------------------------------

def test_results_are_the_same_bytes_on_two_workers_and_in_this_process_and_equal_to_the_sweep(cluster: Any, days: list[Session],
                                                                                                  tmp_path: Path) -> None:
    fan_out(job(days, tmp_path / "log0"), tmp_path / "0", workers=0)
    fan_out(job(days, tmp_path / "log2"), tmp_path / "2", scheduler=on(cluster, 2))
    assert contents(tmp_path / "0") == contents(tmp_path / "2")
    got = pd.concat(frames(open_results(tmp_path / "2")), ignore_index=True)
    want = pd.concat(sweep(days, SPACE, TrialLog(tmp_path / "direct"), MODEL, chunk=5), ignore_index=True)
    pd.testing.assert_frame_equal(got, want, check_exact=True)
    assert got["trades"].sum() > 50
    for n in (0, 2):
        a, b = TrialLog(tmp_path / f"log{n}"), TrialLog(tmp_path / "direct")
        lines = [sorted((t.data, t.ids, t.sets, t.metrics["best_net_bps"]) for t in x.trials()) for x in (a, b)]
        assert lines[0] == lines[1] and a.count("pressure") == SPACE.size
    pd.testing.assert_frame_equal(fanout.sweep_summary(open_results(tmp_path / "2"), 2)[list((s := summary(want, 3.0, 2)).columns)], s)


def test_a_killed_worker_costs_a_retry_a_deadly_unit_is_named_and_sockets_stay_on_the_loopback(tmp_path: Path) -> None:
    "Unit 2 kills its worker once, unit 3 every time: it is named, at most beside one that was on its workers again and again."
    seen: set[str] = set()
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.2):
            for p in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                try: seen.update(c.laddr.ip for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN)
                except psutil.Error: continue
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with pytest.raises(ResearchError, match=r"unit square of (3|2 and 1 more|3 and 1 more): workers lost over it: got 3"):
            fan_out(squares({2: "once", 3: "always"}, tmp_path / "mark", 6), tmp_path / "storm", workers=2, retries=1)
    finally:
        over.set()
        watcher.join()
    assert seen == {"127.0.0.1"}
    kept = open_results(tmp_path / "storm", complete=False)
    assert kept.missing() == [3] and [f.square.item() for f in frames(kept, [0, 1, 2, 4, 5])] == [0, 1, 4, 16, 25]


# ---- interruptions -------------------------------------------------------------------------------------------------------------------

PARENT = """
import sys
sys.path[:0] = [{tests!r}]
from dataclasses import replace
from pathlib import Path
import test_research_fanout as t
if __name__ == "__main__":
    days = [t.session_at(p) for p in sys.argv[3:]]
    t.fan_out(replace(t.job(days, Path(sys.argv[2]), 2), fn=t.slowly), sys.argv[1], workers=1)
"""


def slowly(unit: Any) -> pd.DataFrame:
    time.sleep(0.2)
    return fanout.run_sweep_unit(unit)


@pytest.mark.parametrize("sig", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.soak)])
def test_interrupted_runs_resume_where_they_stopped(days: list[Session], tmp_path: Path, sig: signal.Signals) -> None:
    out, log = tmp_path / "r", tmp_path / "log"
    (tmp_path / "parent.py").write_text(PARENT.format(tests=str(ROOT / "tests")))
    parent = subprocess.Popen([sys.executable, str(tmp_path / "parent.py"), str(out), str(log), *(s.path for s in days)],
                              env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, start_new_session=True)
    until = time.monotonic() + 60
    while len(list((out / "units").glob("*.parquet")) if out.exists() else []) < 3 and time.monotonic() < until: time.sleep(0.05)
    workers = psutil.Process(parent.pid).children(recursive=True)
    os.kill(parent.pid, sig)
    assert parent.wait(30) != 0
    assert parent.stderr is not None
    parent.stderr.close()
    assert not psutil.wait_procs(workers, 15)[1]  # none is left behind
    before = open_results(out, complete=False).missing()
    assert 0 < len(before) < 24
    done = {p.name: p.stat().st_mtime_ns for p in (out / "units").glob("*.parquet")}
    again = job(days, log, 2)
    fan_out(again, out, resume=True, workers=0)
    assert all((out / "units" / n).stat().st_mtime_ns == t for n, t in done.items())  # kept, not run again
    fan_out(job(days, tmp_path / "log2", 2), tmp_path / "whole", workers=0)
    assert contents(out) == contents(tmp_path / "whole")
    assert sorted((t.data, t.ids) for t in TrialLog(log).trials()) == sorted((t.data, t.ids) for t in TrialLog(tmp_path / "log2").trials())


class Died(BaseException):
    "The process ends here."


@pytest.mark.parametrize("logged", [False, True])
def test_a_trial_is_logged_once_though_the_process_dies_beside_the_log(days: list[Session], tmp_path: Path, logged: bool) -> None:
    j = job(days[:1], tmp_path / "log", 100)
    log = TrialLog(tmp_path / "log")
    real = j.record
    assert real is not None

    def dies(unit: Any, frame: pd.DataFrame) -> None:
        if logged: real(unit, frame)
        raise Died
    with pytest.raises(Died): fan_out(replace(j, record=dies), tmp_path / "r", workers=0)
    assert (len(log.trials()), open_results(tmp_path / "r", complete=False).missing()) == (int(logged), [0, 1])
    fan_out(j, tmp_path / "r", resume=True, workers=0)
    assert len(log.trials()) == 2 and not (tmp_path / "r" / "units" / "000000.waiting").exists()


def test_publishing_again_after_settling_changes_nothing(tmp_path: Path) -> None:
    seen: list[int] = []
    j = squares({}, tmp_path / "no", 2, record=lambda t, f: seen.append(t[0]), recorded=lambda t, since: t[0] in seen)
    r = fanout.begin(j, tmp_path / "r")
    publish(r, j, 0, fanout._work(square, j.tasks[0], (), code_of(())))  # type: ignore[arg-type]
    settle(r, j)
    settle(r, j)
    assert seen == [0] and r.missing() == [1]


def test_another_space_other_data_or_other_code_does_not_resume(days: list[Session], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = TrialLog(tmp_path / "log")
    fan_out(job(days, log.path), tmp_path / "r", workers=0)

    def refused(match: str, j: Job) -> None:
        with pytest.raises(ResearchError, match=match): fan_out(j, tmp_path / "r", resume=True, workers=0)
    refused(r"changed since it was started: got 'space \(", sweep_job(days, sweep_space(lower=[0.61, 0.7, 0.8], depth_multiplier=[1.2, 1.5],
                                                                                      stop_pct=[0.001, 0.002]), log, MODEL, chunk=5))
    refused(r"got 'model \(", sweep_job(days, SPACE, log, FillModel(cost_bps=4.0), chunk=5))
    other, universe = synthetic(2, 600, seed=9)
    path = tmp_path / "day1.parquet"
    write_parquet(other, universe, path)
    refused(r"got 'data day1.parquet \(", job([days[0], session_at(path)], log.path))
    refused(r"symbols \(S0,S1, now S1\)", sweep_job(days, SPACE, log, MODEL, ["S1"], chunk=5))
    monkeypatch.setattr(fanout, "KERNEL_STAMP", "0" * 64)
    refused(r"kernels \(\w{12}, now 000000000000\)", job(days, log.path))
    assert len(log.trials()) == 12


def test_a_recording_replaced_while_it_runs_is_refused(tmp_path: Path) -> None:
    [s] = recordings(tmp_path, 1)
    j = job([s], tmp_path / "log")
    rows, universe = synthetic(2, 600, seed=5)
    write_parquet(rows, universe, s.path)
    fanout._kept_rows.cache_clear()
    with pytest.raises(ResearchError, match="the file changed since the sweep was set up"): fan_out(j, tmp_path / "r", workers=0)


# ---- bars ----------------------------------------------------------------------------------------------------------------------------

def test_a_sweep_over_bars_with_a_users_rule_is_the_same_on_0_1_and_2_workers(cluster: Any, tmp_path: Path) -> None:
    "A strategy named module:OBJECT is imported by the workers; its file is part of what a run is continued as."
    from scalp_nb.research import barsweep as b
    bars, universe = b.walk_bars(2, 3)
    rec, space = b.bar_recording("walk", bars, universe), b.bar_space("fanned:MINE", {"fast_period": [5, 10], "slow_period": [20, 30]})
    log = {n: TrialLog(tmp_path / f"log{n}") for n in (0, 1, 2, 9)}
    for n in (2, 1): fan_out(fanout.bar_job([rec], space, log[n], chunk=3), tmp_path / str(n), scheduler=on(cluster, n))
    fan_out(fanout.bar_job([rec], space, log[0], chunk=3), tmp_path / "0", workers=0)
    assert contents(tmp_path / "0") == contents(tmp_path / "1") == contents(tmp_path / "2")
    got = pd.concat(frames(open_results(tmp_path / "2")), ignore_index=True)
    want = pd.concat(b.bar_sweep([rec], space, log[9], chunk=3), ignore_index=True)
    pd.testing.assert_frame_equal(got, want, check_exact=True)
    assert got["trades"].sum() > 20
    assert [sorted((t.data, t.ids) for t in log[n].trials()) for n in (0, 1, 2)] == [sorted((t.data, t.ids) for t in log[9].trials())] * 3
    file = Path(str(sys.modules["fanned"].__file__))
    file.write_text(OWN + "# changed\n")
    fanout._sources.cache_clear()
    try:
        with pytest.raises(ResearchError, match="changed since it was started: got 'code"):
            fan_out(fanout.bar_job([rec], space, log[0], chunk=3), tmp_path / "0", resume=True, workers=0)
    finally:
        file.write_text(OWN)
        fanout._sources.cache_clear()


# ---- a real scheduler ----------------------------------------------------------------------------------------------------------------

def test_a_scheduler_elsewhere_with_one_worker_does_the_same_work_and_other_code_is_refused(cluster: Any, days: list[Session],
                                                                                                    tmp_path: Path) -> None:
    fan_out(job(days, tmp_path / "log"), tmp_path / "r", scheduler=on(cluster, 1))
    fan_out(job(days, tmp_path / "log2"), tmp_path / "here", workers=0)
    assert contents(tmp_path / "r") == contents(tmp_path / "here")
    refused = fanout._work(square, (1, "", ""), (), {**code_of(()), "numpy": "1.0"})
    assert isinstance(refused, fanout._Refused) and "numpy" in refused.text


def test_an_unreachable_scheduler_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanout, "CONNECT", "1s")
    start = time.monotonic()
    with pytest.raises(ResearchError, match="scheduler: got 'tcp://127.0.0.1:9'"):
        fan_out(squares({}, tmp_path / "no"), tmp_path / "r", scheduler="tcp://127.0.0.1:9")
    with pytest.raises(ResearchError, match="scheduler: got 'nonsense://x'"):
        fan_out(squares({}, tmp_path / "no"), tmp_path / "r", resume=True, scheduler="nonsense://x")
    assert time.monotonic() - start < 20


def test_progress_is_shown_when_asked_and_quiet_elsewhere(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fan_out(squares({}, tmp_path / "no", 3), tmp_path / "a", workers=0)
    assert capfd.readouterr().err == ""
    fan_out(squares({}, tmp_path / "no", 3), tmp_path / "b", workers=0, progress=True)
    assert "3/3" in capfd.readouterr().err


