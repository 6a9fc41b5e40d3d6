"""The relay engine under the real papermill: what a stop does to a running notebook, and what the exit status says."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent

# Registers the engine by hand where the package is importable but not installed, so that its entry point is absent.
DRIVER = """
from papermill.cli import papermill
from papermill.engines import papermill_engines
from scalp_nb.live.engine import LiveEngine
papermill_engines.register('live', LiveEngine)
papermill()
"""

HANDLER = """
import asyncio, os, signal
from pathlib import Path
async def main():
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, stop.set)
    Path('ready').write_text(str(os.getpid()))
    try:
        await asyncio.wait_for(stop.wait(), 60)
        await asyncio.sleep(0.5)   # a drain takes its time
        Path('drained').touch()
    finally: loop.remove_signal_handler(signal.SIGINT)
await main()
"""
SYNC = """
import os, time
from pathlib import Path
try:
    Path('ready').write_text(str(os.getpid()))
    for _ in range(600): time.sleep(0.1)
finally:
    time.sleep(0.5)
    Path('finally').touch()
"""
DEAF = """
import os, signal, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.SIG_IGN)
Path('ready').write_text(str(os.getpid()))
for _ in range(600): time.sleep(0.1)
"""
NEXT = "from pathlib import Path; Path('next').touch()"


def command() -> list[str]:
    "papermill with the live engine: by its entry point where the package is installed, else registered by the driver."
    installed = any(e.name == "live" for e in entry_points(group="papermill.engine"))
    return [sys.executable, "-m", "papermill"] if installed else [sys.executable, "-c", DRIVER]


@contextmanager
def running(tmp_path: Path, *cells: str) -> Iterator[subprocess.Popen[bytes]]:
    "papermill running `cells`, in its own session, with `tmp_path` as working directory."
    nb = new_notebook(cells=[new_code_cell(c) for c in cells], metadata={"kernelspec": {"name": "python3", "display_name": "python3"}})
    nbformat.write(nb, tmp_path / "in.ipynb")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    with (tmp_path / "log").open("wb") as log:
        p = subprocess.Popen([*command(), "--engine", "live", "--no-progress-bar", "in.ipynb", "out.ipynb"], cwd=tmp_path, env=env,
                             stdout=log, stderr=log, start_new_session=True)
    try: yield p
    finally:
        if p.poll() is None: p.kill()
        p.wait()


def until(condition: Callable[[], bool], p: subprocess.Popen[bytes], seconds: float = 60) -> None:
    "Wait for `condition`; fail with the log when papermill ends first or the time is up."
    end = time.monotonic() + seconds
    while not condition():
        assert p.poll() is None, f"papermill ended early, rc {p.returncode}"
        assert time.monotonic() < end, "timed out"
        time.sleep(0.02)


def kernel_pid(tmp_path: Path, p: subprocess.Popen[bytes]) -> int:
    "Wait until the cell runs; the kernel's process id."
    ready = tmp_path / "ready"
    until(lambda: ready.exists() and ready.read_text() != "", p)
    return int(ready.read_text())


def gone(pid: int, seconds: float = 5) -> bool:
    "True once the process has ended (a zombie counts as ended)."
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if "Z" in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]: return True
        except (FileNotFoundError, ProcessLookupError): return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("group", [False, True], ids=["process", "group"])
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda s: s.name)
def test_handler_notebook_drains_and_reports(tmp_path: Path, signum: signal.Signals, group: bool) -> None:
    if group and signum == signal.SIGHUP: pytest.skip("one form of SIGHUP is enough")
    with running(tmp_path, HANDLER, NEXT) as p:
        kernel = kernel_pid(tmp_path, p)
        (os.killpg if group else os.kill)(p.pid, signum)
        assert p.wait(30) == 0, (tmp_path / "log").read_text()
    assert (tmp_path / "drained").exists()
    assert (tmp_path / "next").exists(), "the cell after the drain must run: it is the report"
    assert gone(kernel)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT], ids=lambda s: s.name)
def test_plain_notebook_runs_its_finally_and_fails(tmp_path: Path, signum: signal.Signals) -> None:
    with running(tmp_path, SYNC, NEXT) as p:
        kernel = kernel_pid(tmp_path, p)
        os.killpg(p.pid, signum)
        assert p.wait(30) == 1
    assert (tmp_path / "finally").exists()
    assert not (tmp_path / "next").exists()
    assert "KeyboardInterrupt" in (tmp_path / "out.ipynb").read_text()
    assert gone(kernel)


def test_killed_kernel_is_noticed_in_seconds(tmp_path: Path) -> None:
    with running(tmp_path, SYNC, NEXT) as p:
        os.kill(kernel_pid(tmp_path, p), signal.SIGKILL)
        began = time.monotonic()
        assert p.wait(30) != 0
        assert time.monotonic() - began < 10
    assert not (tmp_path / "next").exists()


def test_third_stop_kills_a_kernel_that_does_not_listen(tmp_path: Path) -> None:
    with running(tmp_path, DEAF, NEXT) as p:
        kernel = kernel_pid(tmp_path, p)
        for _ in range(2):
            p.terminate()
            time.sleep(0.5)
            assert p.poll() is None, "two stops only ask"
        p.terminate()
        assert p.wait(30) != 0
    assert gone(kernel)
    assert not (tmp_path / "next").exists()


def test_stop_while_the_kernel_boots_runs_no_cell(tmp_path: Path) -> None:
    with running(tmp_path, "pass", NEXT) as p:
        until((tmp_path / "out.ipynb").exists, p)   # papermill saves once before it starts the kernel
        p.terminate()
        assert p.wait(60) != 0
    assert not (tmp_path / "next").exists()
    assert "stop signal arrived while no cell was running" in (tmp_path / "out.ipynb").read_text()


def test_without_a_stop_nothing_differs(tmp_path: Path) -> None:
    with running(tmp_path, "1 + 1", NEXT) as p: assert p.wait(60) == 0
    assert (tmp_path / "next").exists()
    out = nbformat.read(tmp_path / "out.ipynb", 4)
    assert out.cells[0].outputs[0].data["text/plain"] == "2"


def test_failing_cell_gives_failing_status(tmp_path: Path) -> None:
    with running(tmp_path, "raise ValueError('no')", NEXT) as p: assert p.wait(60) == 1
    assert not (tmp_path / "next").exists()
