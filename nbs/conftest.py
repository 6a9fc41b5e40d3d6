"""nbval over notebooks that nbdev keeps. `make test` runs it; by hand: `pytest --nbval nbs --nbval-sanitize-with tests/gates/nbval.cfg`.

nbdev_clean empties execution counts, which nbval takes for "never run", and nbval knows nothing of nbdev's directives. The notebooks
people run (nbs/live, those that export nothing) need a trading session; papermill executes them instead, in the `replay` step.
"""

import json
import re
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


@cache
def skipping_flags() -> frozenset[str]:
    "Directives that keep a cell from being tested: tst_flags in settings.ini."
    from nbdev.config import get_config
    return frozenset(get_config(path=HERE).tst_flags.split())


def is_skipped(source: str) -> bool:
    "Would nbdev_test leave this cell out?"
    directives = [m.strip() for m in re.findall(r"^#\|(.*)$", source, re.M)]
    return "nbdev_export(" in source or any(re.fullmatch(r"eval:\s*false", d) or d in skipping_flags() for d in directives)


NEEDS = {"against_hftbacktest.ipynb": "hftbacktest"}   # installed beside the rest where it has a wheel: see the Makefile


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    "Leave the notebooks that papermill runs to papermill, and those whose peer is not installed."
    if find_spec(NEEDS.get(collection_path.name, "pytest")) is None: return True
    if collection_path.suffix != ".ipynb" or collection_path.parent != HERE / "live": return None
    cells = json.loads(collection_path.read_text(encoding="utf-8"))["cells"]
    return None if any("#| default_exp" in "".join(c["source"]) for c in cells) else True


def pytest_configure(config: pytest.Config) -> None:
    "A kernel's ports are chosen before it opens them: of two workers that choose the same, one kernel dies at its start. It is started again."
    if find_spec("nbval") is None: return
    import nbval.kernel
    from tenacity import retry, retry_if_exception_message, stop_after_attempt
    again = retry(stop=stop_after_attempt(3), retry=retry_if_exception_message(match="Kernel died before replying"), reraise=True)
    nbval.kernel.start_new_kernel = again(nbval.kernel.start_new_kernel)


@pytest.hookimpl(wrapper=True)
def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> Any:
    "Let nbval make its collector, then prepare the cells it yields."
    found = yield
    for collector in (c for c in found or () if type(c).__name__ == "IPyNbFile"): prepare(collector)
    return found


def prepare(collector: Any) -> None:
    "Wrap one nbval collector's `collect`. What a figure shows is printed beside it; its JSON changes with every release of plotly."
    collector.skip_compare = (*collector.skip_compare, "application/vnd.plotly.v1+json")
    original = collector.collect

    def collect() -> Iterator[Any]:
        for item in original():
            cell = item.cell
            if cell.get("outputs") and cell.get("execution_count") is None: cell.execution_count = 0
            if is_skipped(cell.source): item.options["skip"] = True
            yield item

    collector.collect = collect
