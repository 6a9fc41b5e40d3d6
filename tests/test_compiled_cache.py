"""What was compiled once is not compiled again: the cache on disk is met by the next process, and cannot answer for code that has changed."""

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from numba.core.dispatcher import Dispatcher

import scalp_nb
import scalp_nb.feed.synthetic as synthetic

ROOMS = ("feed", "strategy", "risk", "order", "broker", "trader", "research")
WORK = """
import sys
from decimal import Decimal
from numba.core.dispatcher import Dispatcher
from scalp_nb.feed.health import HealthConfig, health_params
from scalp_nb.feed.synthetic import SyntheticConfig, SyntheticSymbol, synthetic_market
from scalp_nb.research.sweep import cell_numbers, run_tape, sets_frame, sweep_space, tape_of
from scalp_nb.strategy.pressure import PressureParams, rule_params
from scalp_nb.strategy.scan import NEVER, Scanner, scan_at

rows, _ = synthetic_market(SyntheticConfig(symbols=(SyntheticSymbol(symbol="S0", price=Decimal(500)),), seconds=60))
space = sweep_space()
run_tape(tape_of("d", "S0", 0, [rows], space), sets_frame(space, cell_numbers(space)))
s = Scanner(1, health_params(HealthConfig(), 0, NEVER) | rule_params(PressureParams()))
scan_at(s.ctx, rows.ctypes.data, 10, 0, NEVER)
for name, module in list(sys.modules.items()):
    for f in vars(module).values() if name.startswith("scalp_nb.") else ():
        if isinstance(f, Dispatcher) and f.stats.cache_misses: print(f.py_func.__qualname__)
"""


def compiled() -> list[tuple[str, Any]]:
    "Every compiled function that a module of the rooms up to research holds."
    names = [f"scalp_nb.{r}.{m.name}" for r in ROOMS for m in pkgutil.iter_modules([f"{scalp_nb.__path__[0]}/{r}"]) if m.name != "__main__"]
    return [(n, f) for n in names for f in vars(importlib.import_module(n)).values() if isinstance(f, Dispatcher)]


def test_no_compiled_function_is_held_in_a_closure() -> None:
    "Numba keys its cache on the closure's contents, and a compiled function is new in every process: it would never be found, and pile up on disk."
    found = compiled()
    assert len(found) > 100
    bad = [f"{n}.{f.py_func.__qualname__}" for n, f in found
           if any(isinstance(c.cell_contents, Dispatcher) for c in f.py_func.__closure__ or ())]
    assert not bad


def test_the_next_process_compiles_nothing() -> None:
    runs = [subprocess.run([sys.executable, "-c", WORK], check=True, capture_output=True, text=True, cwd=Path(scalp_nb.__file__).parents[1]).stdout
            for _ in range(2)]
    assert runs[1].split() == []


def test_the_synthetic_market_is_compiled_from_its_own_file_alone() -> None:
    "Numba notices a change of the file a function is in, and of no other."
    own = [f for n, f in compiled() if n == synthetic.__name__]
    assert len(own) > 15
    for f in own:
        for name in f.py_func.__code__.co_names:
            used = vars(synthetic).get(name)
            if isinstance(used, Dispatcher): assert used.py_func.__module__ == synthetic.__name__, name
            elif isinstance(used, int): assert name not in vars(importlib.import_module("scalp_nb.feed.depth")), name
