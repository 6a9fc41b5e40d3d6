"""How long a killed session needs until it trades again at the Alpaca practice venue; beside it, what Python needs to load the session.

python tests/bench/bench_restart.py
"""
from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
from alpaca_live import begun, conf, folder, journal, shaped, until, venue, waves  # noqa: E402

SPEED = 20.0   # venue seconds in a second


def restarts(n: int, tmp: Path) -> list[float]:
    "Seconds from the start of the new process to entries being on, of `n` kills."
    tape = shaped(waves(3, 3600))
    cfg = conf(tape, SPEED, **{"risk.max_consecutive_losses": 1000, "risk.max_trades_per_day": 1000, "exits.stop_pct": 0.05,
                              "exits.target_pct": 0.5})
    run_dir, took = folder(tmp, cfg), list[float]()
    def lives() -> list[Any]: return [r for r in journal(run_dir, "note:entries") if r.data["on"]]
    with venue(tape, SPEED) as server:
        life = begun(run_dir, cfg)
        until(lambda: server.get("truth")["positions"], "a position")
        while len(took) < n:
            os.kill(life.pid, signal.SIGKILL)
            life.wait()
            before, t0, life = len(lives()), time.monotonic(), begun(run_dir, cfg)
            until(lambda before=before: len(lives()) > before, "trading again", every=0.05)
            took.append(time.monotonic() - t0)
        life.send_signal(signal.SIGTERM)
        assert life.wait(120) == 0
    return took


def loading() -> float:
    "Seconds in which Python loads the session and ends."
    t0 = time.monotonic()
    subprocess.run([sys.executable, "-c", "import scalp_nb.trader.session"], check=True)
    return time.monotonic() - t0


def main() -> None:
    base = statistics.median(loading() for _ in range(3))
    with tempfile.TemporaryDirectory() as tmp: took = restarts(5, Path(tmp))
    t = statistics.median(took)
    print(f"killed session trading again, median of {len(took)}: {t:.1f} s ({min(took):.1f} to {max(took):.1f}; goal 10); "
          f"loading the session alone {base:.1f} s, ratio {t / base:.1f}")


if __name__ == "__main__": main()
