"""Each gate passes on a sound tree and fails, naming the file and the repair, when it should."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

ROOT = Path(__file__).parent.parent
GATES = ROOT / "tests" / "gates"
KERNEL = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
MODULE = [
    new_markdown_cell("# Sample\n\n> A module to break."),
    new_code_cell("#| default_exp feed.sample"),
    new_code_cell("#| export\nfrom math import sqrt"),
    new_code_cell('#| export\ndef root(x: float) -> float:\n    "Square root."\n    return sqrt(x)'),
    new_code_cell("assert root(4) == 2"),
]
LIVE = [new_code_cell("symbol = 'SPY'", metadata={"tags": ["parameters"]}), new_code_cell("print(symbol)")]
INDEX = [new_markdown_cell("# sample\n\n> What it is. See [the notebook](feed/00_sample.ipynb)."), new_code_cell("1 + 1")]
SETTINGS = (ROOT / "settings.ini").read_text(encoding="utf-8")


def write(path: Path, cells: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nb = new_notebook(cells=cells, metadata=KERNEL)
    path.write_text(json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    "Change a notebook in place, as a careless editor would."
    nb = json.loads(path.read_text(encoding="utf-8"))
    change(nb)
    path.write_text(json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


def tool(repo: Path, name: str, *args: str) -> None:
    "An nbdev or git command in `repo`."
    exe = Path(sys.executable).parent / name
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST" and not k.startswith("GIT_")}
    subprocess.run([exe if exe.exists() else name, *args], cwd=repo, env=env, check=True, capture_output=True)


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A small repository that passes every gate."
    repo = tmp_path_factory.mktemp("sound")
    (repo / "settings.ini").write_text(SETTINGS, encoding="utf-8")
    (repo / "scalp_nb").mkdir()
    (repo / "scalp_nb" / "__init__.py").write_text('__version__ = "0.1.0"\n')
    write(repo / "nbs" / "feed" / "00_sample.ipynb", MODULE)
    write(repo / "nbs" / "live" / "live_trading.ipynb", LIVE)
    write(repo / "nbs" / "index.ipynb", INDEX)
    tool(repo, "nbdev_clean")
    tool(repo, "nbdev_export")
    code = "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; from readme import render; " \
           "Path('README.md').write_text(render(Path('nbs/index.ipynb')))"
    subprocess.run([sys.executable, "-c", code, str(GATES)], cwd=repo, check=True)
    tool(repo, "git", "init", "-q")
    tool(repo, "git", "add", "-A")
    return repo


@pytest.fixture
def repo(sound: Path, tmp_path: Path) -> Path:
    "A copy of the sound repository, to break."
    return Path(shutil.copytree(sound, tmp_path / "repo"))


def gate(name: str, repo: Path) -> tuple[int, str]:
    "Exit status and output of one gate."
    done = subprocess.run([sys.executable, GATES / "gates.py", name, "--root", repo], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout


def snapshot(repo: Path) -> dict[str, bytes]:
    return {str(p.relative_to(repo)): p.read_bytes() for p in repo.rglob("*") if p.is_file() and ".git" not in p.relative_to(repo).parts}


@pytest.mark.parametrize("name", ["clean", "export", "readme", "style"])
def test_sound_tree_passes_and_is_left_alone(repo: Path, name: str) -> None:
    before = snapshot(repo)
    assert gate(name, repo) == (0, "")
    assert snapshot(repo) == before


def refused(name: str, repo: Path, *parts: str) -> None:
    "The gate fails, its output has all `parts` and a repair, and it repaired nothing by itself."
    before = snapshot(repo)
    rc, out = gate(name, repo)
    assert rc == 1
    for part in (*parts, "To repair:"): assert part in out
    assert snapshot(repo) == before


# ---- clean ---------------------------------------------------------------------------------------------------------------------------

def test_dirty_notebook(repo: Path) -> None:
    edit(repo / "nbs/index.ipynb", lambda nb: nb["cells"][1].update(execution_count=7))
    refused("clean", repo, "nbs/index.ipynb: not clean", "make notebooks")


def test_output_in_module_notebook(repo: Path) -> None:
    edit(repo / "nbs/feed/00_sample.ipynb", lambda nb: nb["cells"][4].update(outputs=[new_output("stream", text="hi")]))
    refused("clean", repo, "00_sample.ipynb cell 5", "without outputs")


@pytest.mark.parametrize("cells, count", [([0, 1], 0), ([0, 0], 2)], ids=["none", "two"])
def test_parameters_cell(repo: Path, cells: list[int], count: int) -> None:
    def change(nb: dict[str, Any]) -> None:
        nb["cells"][0]["metadata"] = {} if count == 0 else {"tags": ["parameters"]}
        nb["cells"][1]["metadata"] = {} if count == 0 else {"tags": ["parameters"]}
    edit(repo / "nbs/live/live_trading.ipynb", change)
    refused("clean", repo, f"live_trading.ipynb: {count} cells tagged `parameters`")


def test_settings_that_strip_tags(repo: Path) -> None:
    (repo / "settings.ini").write_text(SETTINGS.replace("allowed_cell_metadata_keys = tags", "allowed_cell_metadata_keys ="))
    refused("clean", repo, "nbdev_clean strips the tags ['parameters']")


def test_huge_notebook(repo: Path) -> None:
    edit(repo / "nbs/index.ipynb", lambda nb: nb["cells"].append(new_markdown_cell("x" * 400_001)))
    refused("clean", repo, "nbs/index.ipynb", "at most 400,000")


def test_merge_conflict(repo: Path) -> None:
    edit(repo / "nbs/index.ipynb", lambda nb: nb["cells"].append(new_markdown_cell("<<<<<<< HEAD")))
    refused("clean", repo, "unresolved merge conflict")


def test_broken_notebook(repo: Path) -> None:
    (repo / "nbs/index.ipynb").write_text('{"cells": [')
    refused("clean", repo, "nbs/index.ipynb: not a valid notebook")


# ---- export --------------------------------------------------------------------------------------------------------------------------

def test_hand_edited_module(repo: Path) -> None:
    module = repo / "scalp_nb/feed/sample.py"
    module.write_text(module.read_text().replace("Square root.", "The root."))
    refused("export", repo, "scalp_nb/feed/sample.py: differs", "nbdev_update")


def test_notebook_changed_without_export(repo: Path) -> None:
    edit(repo / "nbs/feed/00_sample.ipynb", lambda nb: nb["cells"][3].update(source="#| export\ndef root(x): return x"))
    refused("export", repo, "scalp_nb/feed/sample.py: differs")


def new_module(repo: Path) -> None:
    write(repo / "nbs/feed/01_other.ipynb", [new_code_cell("#| default_exp feed.other"), new_code_cell("#| export\nx = 1")])
    tool(repo, "nbdev_clean")


def test_notebook_never_exported(repo: Path) -> None:
    new_module(repo)
    refused("export", repo, "scalp_nb/feed/other.py: exported by a notebook but not in the tree")


def test_untracked_exported_module(repo: Path) -> None:
    new_module(repo)
    tool(repo, "nbdev_export")
    tool(repo, "git", "add", "nbs", "scalp_nb/_modidx.py")
    refused("export", repo, "scalp_nb/feed/other.py: not known to git")
    tool(repo, "git", "add", "scalp_nb")
    assert gate("export", repo) == (0, "")


def test_ignored_module_counts_as_untracked(repo: Path) -> None:
    (repo / ".gitignore").write_text("other.py\n")
    new_module(repo)
    tool(repo, "nbdev_export")
    tool(repo, "git", "add", "-A")
    refused("export", repo, "scalp_nb/feed/other.py: not known to git")


def test_module_without_notebook(repo: Path) -> None:
    (repo / "scalp_nb/feed/stray.py").write_text("x = 1\n")
    tool(repo, "git", "add", "-A")
    refused("export", repo, "scalp_nb/feed/stray.py: written by hand")


def test_module_whose_notebook_is_gone(repo: Path) -> None:
    new_module(repo)
    tool(repo, "nbdev_export")
    (repo / "nbs/feed/01_other.ipynb").unlink()
    tool(repo, "git", "add", "-A")
    refused("export", repo, "scalp_nb/feed/other.py: its notebook", "is gone")


# ---- README --------------------------------------------------------------------------------------------------------------------------

def test_stale_readme(repo: Path) -> None:
    edit(repo / "nbs/index.ipynb", lambda nb: nb["cells"].append(new_markdown_cell("One more thing.")))
    refused("readme", repo, "README.md: not what nbs/index.ipynb gives", "make readme")


def test_hand_edited_readme(repo: Path) -> None:
    with (repo / "README.md").open("a") as f: f.write("by hand\n")
    refused("readme", repo, "README.md: not what nbs/index.ipynb gives")


def test_missing_readme(repo: Path) -> None:
    (repo / "README.md").unlink()
    refused("readme", repo, "README.md: missing")


def test_link_to_nowhere(repo: Path) -> None:
    (repo / "nbs/feed/00_sample.ipynb").unlink()
    refused("readme", repo, "link to nbs/feed/00_sample.ipynb, which does not exist")


# ---- style ---------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("source, why", [
    ("#| export\nfrom math import *", "star import from math"),
    ("def f():\n    from math import *", "star import from math"),
    ("#| export\nimport math\nx = math.pi", "imports mixed with code"),
    ("#| export\n@patch\ndef area(self: float): return self", "@patch"),
    ("#| export\n@fastcore.basics.patch(as_prop=True)\ndef area(self: float): return self", "@patch"),
    ("#| export\n" + "x = 1\n" * 61, "62 lines, at most 60"),
    ("def f(:", "not Python"),
])
def test_style(repo: Path, source: str, why: str) -> None:
    write(repo / "nbs/feed/00_sample.ipynb", [*MODULE, new_code_cell(source)])
    refused("style", repo, "nbs/feed/00_sample.ipynb cell 6: ", why)


@pytest.mark.parametrize("source", [
    '"What follows is typing only."\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING: from decimal import Decimal',
    "%load_ext autoreload\n!true",
    "#| hide\nimport nbdev; nbdev.nbdev_export()",
    "x = [i for i in range(3)]",
])
def test_style_lets_pass(repo: Path, source: str) -> None:
    write(repo / "nbs/feed/00_sample.ipynb", [*MODULE, new_code_cell(source)])
    assert gate("style", repo) == (0, "")


# ---- README rendering, nbval and the step runner -------------------------------------------------------------------------------------

def test_render(tmp_path: Path) -> None:
    write(tmp_path / "nbs/index.ipynb", [
        new_markdown_cell("# t\n\n![p](images/p.png) [c](../C.md#x) [w](https://a.example/b) [h](#here)\n\n```\n[k](images/k.png)\n```"),
        new_code_cell("#| hide\nsecret = 1"),
        new_code_cell("#| echo: true\nprint('hi')", outputs=[new_output("stream", text="hi\n")]),
    ])
    code = "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; from readme import render; " \
           "print(render(Path(sys.argv[2])))"
    text = subprocess.run([sys.executable, "-c", code, str(GATES), str(tmp_path / "nbs/index.ipynb")], capture_output=True, text=True,
                          check=True).stdout
    for part in ("![p](nbs/images/p.png)", "[c](C.md#x)", "[w](https://a.example/b)", "[h](#here)", "[k](images/k.png)",
                 "```python\nprint('hi')\n```", "    hi"):
        assert part in text
    assert "secret" not in text and "#|" not in text


@pytest.fixture
def nbval(tmp_path: Path) -> Callable[[list[Any]], str]:
    "Runs nbval with our conftest over one notebook; pytest's closing line."
    (tmp_path / "settings.ini").write_text(SETTINGS, encoding="utf-8")
    (tmp_path / "nbs").mkdir()
    (tmp_path / "nbs" / "conftest.py").write_text((ROOT / "nbs" / "conftest.py").read_text())

    def run(cells: list[Any], name: str = "nbs/a.ipynb") -> str:
        write(tmp_path / name, cells)
        argv = [sys.executable, "-m", "pytest", "--nbval", "nbs", "--nbval-current-env", "--nbval-cell-timeout", "60", "-p", "no:cacheprovider",
                "--nbval-sanitize-with", str(GATES / "nbval.cfg")]
        return subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False).stdout.strip().splitlines()[-1]
    return run


def out(text: str) -> list[Any]:
    return [new_output("stream", name="stdout", text=text)]


@pytest.mark.slow
def test_nbval_on_cleaned_notebooks(nbval: Callable[..., str]) -> None:
    cells = [new_code_cell("print('hi')", outputs=out("hi\n")), new_code_cell("#| eval: false\n1 / 0"), new_code_cell("#| live\n1 / 0"),
             new_code_cell("import nbdev; nbdev.nbdev_export()"), new_code_cell("print('took 3.2 ms')", outputs=out("took 8 ms\n"))]
    assert "2 passed, 3 skipped" in nbval(cells)


@pytest.mark.slow
def test_nbval_fails_on_error_and_on_other_output(nbval: Callable[..., str]) -> None:
    assert "2 failed, 1 passed" in nbval([new_code_cell("1 / 0"), new_code_cell("print(1)", outputs=out("2\n")), new_code_cell("x = 1")])


@pytest.mark.slow
def test_nbval_leaves_run_notebooks_to_papermill(nbval: Callable[..., str]) -> None:
    assert "no tests ran" in nbval([new_code_cell("1 / 0")], "nbs/live/live_trading.ipynb")
    assert "1 failed, 1 passed" in nbval([new_code_cell("#| default_exp live.x"), new_code_cell("1 / 0")], "nbs/live/00_x.ipynb")


def test_runner_reports_failure_hint_and_closing_line(tmp_path: Path) -> None:
    code = """
import sys; sys.path.insert(0, sys.argv[1])
import run
todo = [run.Step('good', [sys.executable, '-c', 'print("=== 3 passed, 1 skipped in 0.10s ===")'], 'nothing'),
        run.Step('bad', [sys.executable, '-c', 'raise SystemExit(3)'], 'mend it'),
        run.Step('slow', [sys.executable, '-c', 'import time; time.sleep(60)'], 'wait', limit=0.5)]
run.steps = lambda jobs, run_dir: todo
sys.argv = ['run.py']
sys.exit(run.main())
"""
    done = subprocess.run([sys.executable, "-c", code, str(GATES)], capture_output=True, text=True, check=False, timeout=150)
    assert done.returncode == 1
    assert "bad: FAILED (status 3)" in done.stdout and "What to do: mend it" in done.stdout
    assert "slow: killed after" in done.stdout and "FAILED: bad, slow" in done.stdout
    assert done.stdout.rstrip().endswith("good:\n=== 3 passed, 1 skipped in 0.10s ===")


@pytest.mark.parametrize("python", ["old", ""], ids=["named", "found"])
def test_make_env_refuses_an_old_python(tmp_path: Path, python: str) -> None:
    for name in ("Makefile", "settings.ini", "setup.py"): shutil.copy(ROOT / name, tmp_path)
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    for name in ("old", "python3"):   # a Python that says 3.9 and fails every check
        (bin_ / name).write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.1 && exit 0\nexit 1\n')
        (bin_ / name).chmod(0o755)
    make = shutil.which("make")
    assert make
    for name in ("sh", "date", "grep"): (bin_ / name).symlink_to(shutil.which(name) or name)
    done = subprocess.run([make, "env", *([f"PYTHON={bin_ / python}"] if python else [])], cwd=tmp_path, env={"PATH": str(bin_)},
                          capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "needs Python 3.11 or later" in done.stderr and "Python 3.9.1" in done.stderr and "make env PYTHON=" in done.stderr
    assert not (tmp_path / ".venv").exists()


# ---- static gates --------------------------------------------------------------------------------------------------------------------

@pytest.mark.slow
@pytest.mark.parametrize("room, line, broken", [
    ("feed", "import scalp_nb.order.types", "Rooms"),
    ("live", "import scalp_nb.practice", "Practice"),
    ("panel", "import scalp_nb.broker.base", "panel"),
    ("trader", "import scalp_nb.broker.base", ""),
])
def test_order_of_rooms(tmp_path: Path, room: str, line: str, broken: str) -> None:
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    for r in ("feed", "strategy", "risk", "order", "broker", "trader", "research", "practice", "panel", "live"):
        (tmp_path / "scalp_nb" / r).mkdir(parents=True)
        (tmp_path / "scalp_nb" / r / "__init__.py").touch()
    for p in ("__init__.py", "order/types.py", "broker/base.py"): (tmp_path / "scalp_nb" / p).touch()
    (tmp_path / "scalp_nb" / room / "bad.py").write_text(line + "\n")
    done = subprocess.run([Path(sys.executable).parent / "lint-imports", "--no-logo"], cwd=tmp_path, capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": str(tmp_path)})
    said = [ln for ln in done.stdout.splitlines() if ln.endswith("BROKEN")]
    assert (done.returncode != 0) == bool(broken), done.stdout + done.stderr
    assert all(broken in ln for ln in said) and bool(said) == bool(broken)
