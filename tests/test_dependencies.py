"""What the package imports is what settings.ini declares: the core rooms need the core requirements, everything else an extra."""

import ast
import re
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE_ROOMS = {"feed", "strategy", "risk", "order", "broker", "trader"}
EXTRAS = ("live", "research", "alpaca", "angel", "practice")   # dev is for developers, never for the package


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(*keys: str) -> set[str]:
    "Distributions named under these keys of settings.ini."
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return {canonical(re.split(r"[<>=!~\[; ]", req)[0]) for key in keys for req in config["DEFAULT"][key].split()}


def beside() -> set[str]:
    "What the Makefile installs beside the rest, for a comparison that is left out where it is missing."
    found = re.search(r"^PEER\s*:=\s*(\S+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert found
    return {canonical(re.split(r"[<>=!~]", found[1])[0])}


def imports(tree: ast.Module) -> Iterator[tuple[str, int, bool]]:
    "Top-level package, line, and whether it is imported with the module (not inside a function, not for type checking alone)."
    later = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef)
             or (isinstance(f, ast.If) and "TYPE_CHECKING" in ast.unparse(f.test)) for n in ast.walk(f)}
    for n in ast.walk(tree):
        names = [a.name for a in n.names] if isinstance(n, ast.Import) else [n.module or ""] if isinstance(n, ast.ImportFrom) and not n.level else []
        yield from ((name.partition(".")[0], n.lineno, id(n) not in later) for name in names)


def undeclared(path: Path, room: str, dists: dict[str, list[str]]) -> list[str]:
    "Imports of one module that its installation would not provide."
    core, everything = declared("requirements"), declared("requirements", *(f"{e}_requirements" for e in EXTRAS)) | beside()
    bad = []
    for package, line, at_import in imports(ast.parse(path.read_text(encoding="utf-8"))):
        if package in sys.stdlib_module_names or package == "scalp_nb": continue
        allowed = core if at_import and room in CORE_ROOMS else everything
        if not {canonical(d) for d in dists.get(package, [package])} & allowed:
            where = "requirements" if allowed is core else "requirements and the extras"
            bad.append(f"{path.name}:{line} imports {package}: not among the {where} of settings.ini")
    return bad


def test_every_import_is_declared() -> None:
    dists = dict(packages_distributions())
    bad = [b for p in sorted((ROOT / "scalp_nb").rglob("*.py")) if p.parent.name in CORE_ROOMS | {"research", "practice", "panel", "live"}
           for b in undeclared(p, p.parent.name, dists)]
    assert bad == []


@pytest.mark.parametrize("room, source, n", [
    ("feed", "import numpy", 0),
    ("feed", "import vectorbt", 1),
    ("broker", "def connect():\n    import alpaca.trading", 0),   # an extra, imported where it is used
    ("broker", "import alpaca.trading", 1),
    ("broker", "def connect():\n    import pytest", 1),           # for developers only
    ("live", "from papermill.engines import NBClientEngine", 0),
    ("feed", "import no_such_package", 1),
    ("feed", "from typing import TYPE_CHECKING\nif TYPE_CHECKING: import plotly", 0),
])
def test_the_check_sees_what_it_should(tmp_path: Path, room: str, source: str, n: int) -> None:
    (tmp_path / "m.py").write_text(source)
    assert len(undeclared(tmp_path / "m.py", room, dict(packages_distributions()))) == n
