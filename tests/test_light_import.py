"""Importing the trading rooms needs nothing but the core requirements, touches no network, writes no file, and is quick."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("feed", "strategy", "risk", "order", "broker", "trader")
MAX_CPU_SECONDS = 8.0   # of one process importing every module of the rooms, uncompiled bytecode included
BLOCKED = (
    "vectorbt", "empyrical", "plotly", "matplotlib", "anywidget", "ipywidgets", "IPython", "ipykernel", "jupyter_client", "jupyter_core",
    "jupyterlab", "jupyter_server", "nbformat", "nbclient", "nbconvert", "papermill", "nbdev", "execnb", "fastcore", "pytest", "hypothesis",
    "alpaca", "SmartApi", "logzero", "websocket", "pyotp",
)

PROBE = r"""
import importlib, json, os, sys, time
blocked, modules = set(json.loads(sys.argv[1])), json.loads(sys.argv[2])

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked: raise ImportError(f"{name} is not part of the core install")
sys.meta_path.insert(0, Block())

seen = []
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
def audit(event, args):
    # Python's own bytecode folder is not a side effect; numba tries it for writing when it meets njit(cache=True).
    if args and isinstance(args[0], str) and os.path.basename(args[0].rstrip("/")) == "__pycache__": return
    if event == "open" and isinstance(args[2], int) and args[2] & WRITES and args[0] != os.devnull:
        seen.append(f"open {args[0]!r} for writing")
    elif event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink", "subprocess.Popen", "os.posix_spawn",
                   "os.system", "os.exec", "os.fork", "sqlite3.connect"): seen.append(f"{event} {args!r}")
    elif event.startswith("socket.") and event not in ("socket.gethostname",): seen.append(f"{event} {args!r}")
sys.addaudithook(audit)

failed, slow = {}, {}
for name in modules:
    began = time.process_time()
    try: importlib.import_module(name)
    except BaseException as e: failed[name] = f"{type(e).__name__}: {e}"
    slow[name] = round(time.process_time() - began, 3)
print(json.dumps({"failed": failed, "seen": seen, "seconds": slow, "total": sum(slow.values()),
                  "loaded": sorted({m.partition(".")[0] for m in sys.modules} & {"pandas", "exchange_calendars", "pandas_market_calendars"})}))
"""


def modules(package: Path, rooms: tuple[str, ...] = ROOMS) -> list[str]:
    "Dotted names of every module of the rooms."
    names = [p.relative_to(package.parent).with_suffix("").as_posix().replace("/", ".")
             for room in rooms for p in sorted((package / room).rglob("*.py"))]
    return [n.removesuffix(".__init__") for n in names]


def probe(names: list[str], root: Path, cwd: Path) -> dict[str, Any]:
    "Import `names` in a fresh interpreter that watches what they do."
    env = {**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1", "NUMBA_DISABLE_PERFORMANCE_WARNINGS": "1"}
    done = subprocess.run([sys.executable, "-c", PROBE, json.dumps(BLOCKED), json.dumps(names)], cwd=cwd, env=env, capture_output=True, text=True,
                          check=False, timeout=150)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_rooms_import_light(tmp_path: Path) -> None:
    names = modules(ROOT / "scalp_nb")
    assert "scalp_nb.feed.depth" in names and "scalp_nb.order.types" in names
    found = probe(names, ROOT, tmp_path)
    assert found["failed"] == {}, "these modules need more than the core install"
    assert found["seen"] == [], "importing must not touch network, files or processes"
    assert list(tmp_path.iterdir()) == []
    slowest = sorted(found["seconds"].items(), key=lambda kv: -kv[1])[:5]
    print(f"{len(names)} modules in {found['total']:.2f} s of CPU; slowest {slowest}; also loaded {found['loaded']}")
    assert found["total"] < MAX_CPU_SECONDS, f"slowest: {slowest}"


@pytest.mark.parametrize("line, where, what", [
    ("import plotly.graph_objects", "failed", "not part of the core install"),
    ("from vectorbt import Portfolio", "failed", "not part of the core install"),
    ("import socket; socket.socket()", "seen", "socket."),
    ("open('left_behind', 'w')", "seen", "left_behind"),
    ("import os; os.mkdir('logs')", "seen", "os.mkdir"),
    ("import subprocess; subprocess.run(['true'])", "seen", "subprocess.Popen"),
    ("1 / 0", "failed", "ZeroDivisionError"),
])
def test_the_probe_sees_what_it_should(tmp_path: Path, line: str, where: str, what: str) -> None:
    room = tmp_path / "pkg" / "scalp_nb" / "feed"
    room.mkdir(parents=True)
    (room / "__init__.py").touch()
    (room / "bad.py").write_text(line + "\n")
    found = probe(modules(tmp_path / "pkg" / "scalp_nb", ("feed",)), tmp_path / "pkg", tmp_path)
    assert what in json.dumps(found[where])


def test_import_of_the_record_alone_is_quick(tmp_path: Path) -> None:
    assert probe(["scalp_nb.feed.depth"], ROOT, tmp_path)["total"] < 2.0
