"""Leases between real processes: whatever kills the holder, the session learns of it at once."""
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from scalp_nb.feed.errors import ConfigError
from scalp_nb.trader import lease as L

ROOT = str(Path(__file__).parents[1])
ENV = {**os.environ, "PYTHONPATH": ROOT}

# The session: notes when and how its lease ended, and which signals hit it.
SESSION = """
import json, os, signal, sys, time
from scalp_nb.trader.lease import adopt, announce
out, timeout = sys.argv[1], float(sys.argv[2])
def note(**kw):
    with open(out, "a") as f: f.write(json.dumps(kw) + "\\n")
signal.signal(signal.SIGINT, lambda *a: note(signal="INT"))
watch, ready = adopt(os.environ, timeout)
thread = watch.watch(lambda end: note(word=end.word, reason=end.reason, at=time.monotonic()))
announce(ready, 1234, leftover=[k for k in os.environ if k.startswith("SCALP_LEASE")])
thread.join(60)
"""

# The holder: starts the session, does something to its lease, says it is ready, hangs.
HOLDER = """
import os, subprocess, sys, time
from pathlib import Path
from scalp_nb.trader.lease import spawn_session
session, out, extra, beat = sys.argv[1:5]
h = spawn_session([sys.executable, session, out, "2"], None, Path(out + ".log"), Path(out + ".beat") if beat else None)
exec(extra)
print(h.ready()["pid"], flush=True)
while True:
    h.lease.beat(); time.sleep(0.05)
"""


def alive(pid: int) -> bool:
    return L.birth(pid) != ""


def notes(out: Path) -> list[dict]:
    return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


def until(check, timeout: float = 10.0):
    "Wait for `check()` to be true and return it."
    end = time.monotonic() + timeout
    while not (got := check()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
    return got


@pytest.fixture
def scripts(tmp_path: Path):
    (tmp_path / "session.py").write_text(SESSION)
    (tmp_path / "holder.py").write_text(HOLDER)
    return tmp_path


@pytest.fixture
def start(scripts: Path):
    "Start a holder with its session; returns (holder, session pid, notes file)."
    started: list[tuple[subprocess.Popen, int]] = []

    def go(extra: str = "", beat: bool = False):
        out = scripts / f"notes{len(started)}"
        argv = [sys.executable, str(scripts / "holder.py"), str(scripts / "session.py"), str(out), extra, "1" if beat else ""]
        holder = subprocess.Popen(argv, env=ENV, stdout=subprocess.PIPE, text=True, start_new_session=True)
        pid = int(holder.stdout.readline())
        started.append((holder, pid))
        return holder, pid, out

    yield go
    for holder, pid in started:
        holder.kill()
        holder.wait()
        holder.stdout.close()
        until(lambda pid=pid: not alive(pid))


def lost_after(out: Path, since: float) -> tuple[dict, float]:
    note = until(lambda: next((n for n in notes(out) if "word" in n), None))
    return note, note["at"] - since


def test_sigkill_of_the_holder_is_noticed_at_once(start):
    holder, pid, out = start()
    assert notes(out) == []
    t0 = time.monotonic()
    holder.kill()
    note, took = lost_after(out, t0)
    assert note["word"] == "" and "without a word" in note["reason"] and took < 5   # not only when the heartbeat is missed
    until(lambda: not alive(pid))


def test_programs_and_forks_of_the_holder_do_not_keep_its_lease(start):
    "A grandchild that survives the holder must not hold its lease open."
    extra = "subprocess.Popen(['sleep', '30'], start_new_session=True)\nif os.fork() == 0:\n    time.sleep(5); os._exit(0)"
    holder, _, out = start(extra)
    t0 = time.monotonic()
    holder.kill()
    note, took = lost_after(out, t0)
    assert note["word"] == "" and took < 4   # the grandchild lives for five


def test_sigint_to_the_holders_group_does_not_reach_the_session(start):
    holder, pid, out = start("import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)")
    os.killpg(holder.pid, signal.SIGINT)
    time.sleep(0.3)
    assert alive(pid) and notes(out) == []


def test_holder_dying_of_ctrl_c_loses_the_lease_and_nothing_else(start):
    holder, _, out = start()
    os.killpg(holder.pid, signal.SIGINT)
    note, _ = lost_after(out, time.monotonic())
    assert note["word"] == "" and not any("signal" in n for n in notes(out))


def test_clean_release_carries_its_word(start):
    _, pid, out = start("import threading; threading.Timer(0.6, h.release).start()")
    note, _ = lost_after(out, time.monotonic())
    assert note["word"] == "done"
    until(lambda: not alive(pid))


def test_hung_holder_is_noticed_by_its_heartbeat(start):
    holder, _, out = start(beat=True)
    time.sleep(4)  # twice the time-out: a beating holder keeps its lease
    assert notes(out) == []
    t0 = time.monotonic()
    holder.send_signal(signal.SIGSTOP)
    note, took = lost_after(out, t0)
    assert "no heartbeat" in note["reason"] and took < 10


NOTEBOOK = """
import sys, time
from pathlib import Path
from scalp_nb.trader.lease import spawn_session
h = spawn_session([sys.executable, SESSION, OUT, "5"], None, Path(OUT + ".log"))
Path(OUT + ".pid").write_text(str(h.ready()["pid"]))
time.sleep(60)
"""


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGKILL])
def test_papermill_ended_by_a_signal_loses_the_lease(scripts: Path, sig):
    "The whole chain of a headless run: papermill dies, its kernel follows, the session hears of it."
    nbformat, _ = pytest.importorskip("nbformat"), pytest.importorskip("papermill")
    out = scripts / "notes"
    code = f"SESSION, OUT = {str(scripts / 'session.py')!r}, {str(out)!r}\n{NOTEBOOK}"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)]), scripts / "live.ipynb")
    argv = [sys.executable, "-m", "papermill", "-k", "python3", str(scripts / "live.ipynb"), str(scripts / "out.ipynb")]
    mill = subprocess.Popen(argv, env=ENV, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        pid_file = Path(f"{out}.pid")
        pid = int(until(lambda: pid_file.exists() and pid_file.read_text(), 60))
        t0 = time.monotonic()
        mill.send_signal(sig)
        note, took = lost_after(out, t0)
        assert note["word"] == "" and took < 10  # the kernel's own parent poller needs up to a second
        until(lambda: not alive(pid))
    finally:
        mill.kill()
        mill.wait()


def spawn(tmp_path: Path, code: str) -> L.Handle:
    return L.spawn_session([sys.executable, "-c", code], ENV, tmp_path / "session.log")


def close(h: L.Handle) -> None:
    h.process.kill()
    h.wait()
    h.release("")
    if h.ready_fd >= 0:
        os.close(h.ready_fd)


def test_ready_news_and_a_clean_environment(scripts: Path):
    h = L.spawn_session([sys.executable, str(scripts / "session.py"), str(scripts / "n"), "1"], ENV, scripts / "session.log", scripts / "beat")
    news = h.ready(20)
    assert news == {"port": 1234, "pid": h.pid, "leftover": []} and h.alive and h.returncode is None
    assert os.getsid(h.pid) == h.pid and oct((scripts / "session.log").stat().st_mode & 0o777) == "0o600"
    h.release()
    assert h.wait(10) == 0 and not h.alive
    h.release()  # releasing twice, or after the end, is no error
    with pytest.raises(L.SessionError, match="asked twice"):
        h.ready()


def test_session_that_dies_before_it_is_ready_says_why(tmp_path: Path):
    h = spawn(tmp_path, "raise SystemExit('universe has ABC twice')")
    with pytest.raises(L.SessionError, match="ended with status 1 before.*universe has ABC twice"):
        h.ready(20)
    close(h)


def test_session_that_closes_its_pipe_and_one_that_never_answers(tmp_path: Path):
    h = spawn(tmp_path, "import os, time; os.close(int(os.environ['SCALP_READY_FD'])); time.sleep(30)")
    with pytest.raises(L.SessionError, match="closed its readiness pipe"):
        h.ready(20)
    assert h.wait(0.01) is None
    h.terminate()
    assert h.wait(10) == -signal.SIGTERM
    close(h)
    h = spawn(tmp_path, "import time; time.sleep(30)")
    with pytest.raises(L.SessionError, match="not ready in time"):
        h.ready(0.05)
    close(h)
    assert L._tail(tmp_path / "absent") == ""


def test_program_that_does_not_exist_leaks_nothing(tmp_path: Path):
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(L.SessionError, match="no-such-program"):
        L.spawn_session(["no-such-program"], None, tmp_path / "log")
    assert len(os.listdir("/proc/self/fd")) == before


def test_check_without_a_thread_and_half_a_word():
    lease = L.Lease.hold()
    watch = L.LeaseWatch(lease.fd)
    assert watch.check() is None
    os.write(lease._write, b"don")  # killed in mid-word
    assert watch.check() is None
    lease.release("")
    assert watch.check().lost and watch.check() is watch.end
    lease.given()
    assert L.LeaseWatch.check(watch) is watch.end  # remembered: the closed pipe is not read again


def test_unreadable_pipe_counts_as_lost_and_bad_timeouts_are_refused():
    lease = L.Lease.hold()
    watch = L.LeaseWatch(lease.fd)
    lease.given()
    assert "cannot be read" in watch.check().reason
    lease.release("")
    for bad in (0, -1, float("nan")):
        with pytest.raises(ConfigError, match="lease timeout"):
            L.LeaseWatch(0, bad)


def test_thread_ends_when_called_off_and_agrees_with_check(tmp_path: Path):
    lease = L.Lease.hold(tmp_path / "beat")
    watch = L.LeaseWatch(lease.fd, 0.2, lease.heartbeat)
    said: list[L.LeaseEnd] = []
    thread = watch.watch(said.append)
    for _ in range(10):
        lease.beat()
        time.sleep(0.04)
    assert said == [] and watch.check() is None
    watch.close()
    thread.join(2)
    assert not thread.is_alive() and said == []
    (tmp_path / "beat").unlink()  # a vanished file is no beat
    until(watch.check, 2)
    assert "no heartbeat" in watch.end.reason
    first = watch.end
    lease.release()
    assert watch.check() is first  # the first end stands


def test_thread_notices_a_stopped_heartbeat_and_a_reader_that_is_gone_hurts_nobody(tmp_path: Path):
    lease = L.Lease.hold(tmp_path / "beat")
    watch = L.LeaseWatch(lease.fd, 0.2, lease.heartbeat)
    said: list[L.LeaseEnd] = []
    watch.watch(said.append).join(5)
    assert said == [watch.end] and said[0].lost
    lease.given()
    lease.release()  # the session is gone already
    assert not lease.held


def test_kill_file_stands_until_a_person_removes_it(tmp_path: Path):
    assert L.read_kill(tmp_path) is None
    threads = [threading.Thread(target=L.write_kill, args=(tmp_path, f"p{k}")) for k in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert L.read_kill(tmp_path).startswith("p") and [p.name for p in tmp_path.iterdir()] == ["KILL"]
    for text in ("", "{}", "[1]", '{"who": ""}', "\x00\xff"):
        (tmp_path / "KILL").write_text(text)
        assert L.read_kill(tmp_path) == "file KILL"
    L.kill_seen(tmp_path)
    assert (tmp_path / L.KILL_SEEN).exists()


def test_birth_tells_processes_apart(monkeypatch):
    me = L.birth(os.getpid())
    assert me and L.same_process(os.getpid(), me) and not L.same_process(os.getpid(), me + "1") and not L.same_process(os.getpid(), "")
    zombie = subprocess.Popen([sys.executable, "-c", ""])
    until(lambda: L.birth(zombie.pid) == "")  # dead, not collected yet
    zombie.wait()
    assert L.birth(zombie.pid) == ""
    if shutil.which("ps"):
        assert L._birth_ps(os.getpid()) == L._birth_ps(os.getpid()) != ""
        assert L._birth_ps(zombie.pid) == ""
        monkeypatch.setattr(L.Path, "exists", lambda self: False)  # a system without /proc
        assert L.birth(os.getpid()) == L._birth_ps(os.getpid())


def test_adopt_and_announce_without_a_holder():
    assert L.adopt({}) == (None, None) and L.announce(None, 1) is False
    r, w = os.pipe()
    os.close(r)
    assert L.announce(w, 1) is False
