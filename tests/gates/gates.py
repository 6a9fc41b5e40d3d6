"""Gates over the notebooks and what they export. `python tests/gates/gates.py clean|export|readme|style`.

Every gate works on a copy of the tree, so it is as useful with uncommitted work as on a fresh checkout. It prints each problem with
its file, then what to do, and exits 1.
"""

import argparse
import ast
import filecmp
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat

ROOT = Path(__file__).resolve().parents[2]
MAX_BYTES = 400_000   # of one notebook
MAX_LINES = 60        # of one cell in a module notebook
MAX_CLASS = 120  # a class cannot be cut: methods patched in from other cells are hidden from type checkers
BY_HAND = {"__init__.py", "_modidx.py"}   # Python files of the package that are not exported from a notebook

Nb = dict[str, Any]


# ---- reading notebooks ---------------------------------------------------------------------------------------------------------------

def notebooks(root: Path) -> list[Path]:
    "Every notebook under nbs/, as nbdev sees them: hidden and underscored folders are left out."
    found = sorted((root / "nbs").rglob("*.ipynb"))
    return [p for p in found if not any(part.startswith(("_", ".")) for part in p.relative_to(root).parts)]


def load(path: Path) -> Nb:
    return json.loads(path.read_text(encoding="utf-8"))


def source(cell: Nb) -> str:
    return "".join(cell["source"])


def code_cells(nb: Nb) -> Iterator[tuple[int, Nb]]:
    "Numbered from 1, as a reader counts: markdown cells count too."
    return ((i, c) for i, c in enumerate(nb["cells"], 1) if c["cell_type"] == "code")


def is_module(nb: Nb) -> bool:
    "Does the notebook export a module?"
    return any(re.search(r"^#\|\s*default_exp\s", source(c), re.M) for _, c in code_cells(nb))


def is_run(path: Path, root: Path = ROOT) -> bool:
    "Is it one of the notebooks people run (nbs/live, without an export)? papermill executes those, not nbdev_test or nbval."
    return path.is_relative_to(root / "nbs" / "live") and not is_module(load(path))


def is_study(path: Path, root: Path = ROOT) -> bool:
    "Is it a teaching notebook of nbs/research (without an export)? nbval executes those and compares what they print; once is enough."
    return path.is_relative_to(root / "nbs" / "research") and not is_module(load(path))


@contextmanager
def copy_of(root: Path) -> Iterator[Path]:
    "A throw-away copy of what nbdev reads and writes."
    with tempfile.TemporaryDirectory(prefix="gate-") as tmp:
        copy = Path(tmp) / "repo"
        skip = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "_proc", ".*")
        for name in ("nbs", "scalp_nb"): shutil.copytree(root / name, copy / name, ignore=skip)
        shutil.copy2(root / "settings.ini", copy)
        yield copy


def nbdev(command: str, cwd: Path) -> str | None:
    "Run an nbdev command from this environment; its output where it failed or warned, else None."
    exe = Path(sys.executable).parent / command
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"}
    done = subprocess.run([exe if exe.exists() else command], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).strip() or f"rc {done.returncode}" if done.returncode or "Warning" in done.stderr else None


def tracked(root: Path) -> set[str] | None:
    "Files git knows below `root`; None where this is no git checkout (an unpacked source archive)."
    if not (root / ".git").exists(): return None
    done = subprocess.run(["git", "ls-files", "-z", "nbs", "scalp_nb"], cwd=root, capture_output=True, text=True, check=False)
    return set(done.stdout.split("\0")) if done.returncode == 0 else None


# ---- the gates: each returns its problems --------------------------------------------------------------------------------------------

def clean(root: Path) -> list[str]:
    "nbdev_clean changes nothing, and every notebook is of its kind."
    bad = [p for nb in notebooks(root) for p in notebook_problems(nb, root)]
    if bad: return bad
    with copy_of(root) as copy:
        if failed := nbdev("nbdev_clean", copy): return [f"nbdev_clean failed: {failed}"]
        for path in notebooks(root):
            name = path.relative_to(root)
            if filecmp.cmp(path, copy / name, shallow=False): continue
            lost = tags(load(path)) - tags(load(copy / name))
            bad.append(f"{name}: nbdev_clean strips the tags {sorted(lost)}; settings.ini needs allowed_cell_metadata_keys = tags" if lost
                       else f"{name}: not clean")
    return bad


def tags(nb: Nb) -> set[str]:
    return {t for c in nb["cells"] for t in c["metadata"].get("tags", [])}


def notebook_problems(path: Path, root: Path) -> list[str]:
    "What is wrong with one notebook, whatever nbdev_clean thinks of it."
    name, bad = path.relative_to(root), []
    try:
        nb = load(path)
        nbformat.validate(nbformat.read(path, 4))
    except Exception as e: return [f"{name}: not a valid notebook: {str(e).splitlines()[0][:200]}"]   # any reader's error is the finding
    if path.stat().st_size > MAX_BYTES: bad.append(f"{name}: {path.stat().st_size:,} bytes, at most {MAX_BYTES:,} (an embedded widget or picture?)")
    for i, cell in enumerate(nb["cells"], 1):
        if re.search(r"^(<<<<<<<|>>>>>>>)", source(cell), re.M): bad.append(f"{name} cell {i}: unresolved merge conflict")
    if is_module(nb):
        bad += [f"{name} cell {i}: a module notebook is committed without outputs" for i, c in code_cells(nb) if c.get("outputs")]
    elif is_run(path, root):
        n = sum("parameters" in c["metadata"].get("tags", []) for _, c in code_cells(nb))
        if n != 1: bad.append(f"{name}: {n} cells tagged `parameters`, exactly 1 needed, or papermill's parameters are silently overwritten")
    return bad


def export(root: Path) -> list[str]:
    "nbdev_export changes nothing; no module without a notebook; nothing git has not been told of."
    with copy_of(root) as copy:
        if failed := nbdev("nbdev_export", copy): return [f"nbdev_export failed: {failed}"]
        old, new = ({p.relative_to(r).as_posix() for p in (r / "scalp_nb").rglob("*.py")} for r in (root, copy))
        bad = [f"{n}: exported by a notebook but not in the tree" for n in sorted(new - old)]
        bad += [f"{n}: differs from what its notebook exports" for n in sorted(old & new) if not filecmp.cmp(root / n, copy / n, shallow=False)]
        bad += [f"{n}: {why}" for n in sorted(old) if Path(n).name not in BY_HAND and (why := orphan(root / n))]
    if (known := tracked(root)) is not None:
        here = {p.relative_to(root).as_posix() for d in ("nbs", "scalp_nb") for p in (root / d).rglob("*")
                if p.suffix in (".py", ".ipynb", ".csv") and not {"__pycache__", ".ipynb_checkpoints"} & set(p.parts)}
        bad += [f"{n}: not known to git (git add it, or delete it)" for n in sorted(here - known)]
    return bad


def orphan(module: Path) -> str | None:
    "Why `module` cannot have come from a notebook, or None."
    found = re.search(r"^# AUTOGENERATED! DO NOT EDIT! File to edit: (.+\.ipynb)\.$", module.read_text(encoding="utf-8"), re.M)
    if not found: return "written by hand; only notebooks make modules"
    return None if (module.parent / found[1]).exists() else f"its notebook {found[1]} is gone; delete the module too"


def readme(root: Path) -> list[str]:
    "README.md is what nbs/index.ipynb gives, and the files it points to exist."
    from readme import broken_links, render  # loads nbconvert, which the other gates need not wait for
    path = root / "README.md"
    text = render(root / "nbs" / "index.ipynb")
    if not path.exists(): return ["README.md: missing"]
    bad = [] if path.read_text(encoding="utf-8") == text else ["README.md: not what nbs/index.ipynb gives"]
    return bad + [f"nbs/index.ipynb: link to {t}, which does not exist" for t in broken_links(text, root)]


def style(root: Path) -> list[str]:
    "Module notebooks: imports apart from code, no star imports, no @patch, no long cells."
    return [f"{p.relative_to(root)} cell {i}: {why}" for p in notebooks(root) for nb in [load(p)] if is_module(nb)
            for i, cell in code_cells(nb) for why in cell_problems(source(cell))]


def cell_problems(src: str) -> list[str]:
    "What the house style has against one code cell."
    bad = []
    try: body = ast.parse(re.sub(r"^(\s*)[%!].*$", r"\1pass", src, flags=re.M)).body
    except SyntaxError as e: return [*bad, f"not Python: {e.msg} (line {e.lineno})"]
    most = MAX_CLASS if sum(isinstance(s, ast.ClassDef) for s in body) == 1 == len(body) else MAX_LINES
    if (n := len(src.splitlines())) > most: bad.append(f"{n} lines, at most {most}; one idea a cell")
    imports = [s for s in body if isinstance(s, ast.Import | ast.ImportFrom)]
    if is_exported(src) and 0 < len(imports) < len([s for s in body if not is_guard(s)]):
        bad.append("imports mixed with code; give the imports a cell of their own")
    for node in (n for s in body for n in ast.walk(s)):
        if isinstance(node, ast.ImportFrom) and any(a.name == "*" for a in node.names):
            bad.append(f"star import from {node.module}; name what you use")
        for deco in getattr(node, "decorator_list", []):
            called = deco.func if isinstance(deco, ast.Call) else deco
            if ast.unparse(called).split(".")[-1] in ("patch", "patch_to"):
                bad.append("@patch hides methods from type checkers; use a function or one class")
    return bad


def is_exported(src: str) -> bool:
    "Whether nbdev writes the cell into the package; a test cell may import what it needs."
    return re.search(r"^#\s*\|\s*(export|exports|exporti)\b", src, flags=re.M) is not None


def is_guard(stmt: ast.stmt) -> bool:
    "`if TYPE_CHECKING:` and a docstring may stand with imports."
    if isinstance(stmt, ast.If): return "TYPE_CHECKING" in ast.unparse(stmt.test)
    return isinstance(stmt, ast.Expr) and isinstance(stmt.value, ast.Constant)


GATES: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "clean": (clean, "run `make notebooks` (nbdev_clean, then nbdev_export) and commit the result"),
    "export": (export, "edit the notebook and run `make notebooks`; or, to keep a hand edit of a .py, push it back into its notebook with "
                       "`.venv/bin/nbdev_update scalp_nb/<room>/<module>.py`"),
    "readme": (readme, "edit nbs/index.ipynb, never README.md, and run `make readme`"),
    "style": (style, "change the named cell; CONTRIBUTING.md has the house style"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gate", choices=[*GATES])
    parser.add_argument("--root", type=Path, default=ROOT, help="repository to look at (default: this one)")
    args = parser.parse_args()
    check, hint = GATES[args.gate]
    problems = check(args.root.resolve())
    for p in problems: print(f"{args.gate}: {p}")
    if problems: print(f"To repair: {hint}.")
    return 1 if problems else 0


if __name__ == "__main__": sys.exit(main())
