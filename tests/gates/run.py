"""Everything a change must pass, in order: what `make test`, CI and the GitHub workflow run.

`python tests/gates/run.py`             all steps; a failing step does not hide the later ones
`python tests/gates/run.py --only mypy` some of them (repeatable); `--list` names them
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from gates import GATES, ROOT, is_run, is_study, notebooks

BIN = Path(sys.executable).parent
PYTEST_CLOSING = re.compile(r"^=+ .*\b(passed|failed|error|errors|skipped|no tests ran|deselected)\b.* in [\d.]+s.*=+$")


@dataclass(slots=True)
class Step:
    "One gate: what it runs, and what to do when it fails."
    name: str
    argv: list[str]
    hint: str
    limit: float = 1800   # seconds before the step is killed
    seconds: float = 0
    rc: int | None = None
    closing: list[str] = field(default_factory=list)   # pytest's closing line


def tool(name: str) -> str:
    "A program of this environment."
    return str(BIN / name)


def steps(jobs: int, run_dir: Path) -> list[Step]:
    "The steps in order. The quick ones come first."
    python, here = sys.executable, "tests/gates/gates.py"
    gate = {name: Step(name, [python, here, name], hint) for name, (_, hint) in GATES.items()}
    ours = ["scalp_nb", "tests", "nbs/conftest.py", "setup.py"]
    run_here = [p for p in notebooks(ROOT) if is_run(p) or is_study(p)]   # papermill runs the first below, nbval the second
    skip_run = "|".join(["^[_.]", *(f"^{re.escape(p.name)}$" for p in run_here)])
    return [
        gate["clean"], gate["export"], gate["style"], gate["readme"],
        Step("ruff", [tool("ruff"), "check", *ours], "`.venv/bin/ruff check --fix` repairs tests; in scalp_nb/ change the notebook cell instead"),
        Step("mypy", [tool("mypy")], "give the named function or value a type, in the notebook the file header names"),
        Step("rooms", [tool("lint-imports"), "--no-logo"],
             "an earlier room imports a later one (order in pyproject.toml): move the code down, or pass what it needs as an argument"),
        Step("nbdev", [tool("nbdev_test"), "--n_workers", str(jobs), "--skip_file_re", skip_run],
             "the cell shown failed: `.venv/bin/nbdev_test --path nbs/<room>/<notebook>.ipynb --do_print` runs one notebook"),
        Step("pytest", [python, "-m", "pytest", "tests", "-n", str(jobs), "--dist", "loadscope"],
             "`.venv/bin/pytest <the failing id> -x` runs one test"),
        Step("nbval", [python, "-m", "pytest", "--nbval", "nbs", "--nbval-sanitize-with", "tests/gates/nbval.cfg", "--nbval-cell-timeout", "180",
                       "--nbval-current-env", "-n", str(jobs), "--dist", "loadfile", "-p", "no:cacheprovider"],
             "a notebook fails, or prints something other than its stored output: run it again in JupyterLab and save, then `make notebooks`"),
        Step("replay", ["make", "--no-print-directory", "live", f"RUN={run_dir}"],
             f"the live notebook failed on recorded data; what it did is in {run_dir}", limit=300),
    ]


def run(step: Step, env: dict[str, str]) -> None:
    "Run one step, its output passed on as it comes."
    began = time.monotonic()
    with subprocess.Popen(step.argv, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace") as p:
        timer = threading.Timer(step.limit, p.kill)
        timer.start()
        assert p.stdout
        for line in p.stdout:
            print(line, end="", flush=True)
            if PYTEST_CLOSING.match(line.strip()): step.closing = [line.strip()]
        step.rc = p.wait()
        timer.cancel()
    step.seconds = time.monotonic() - began
    if step.seconds >= step.limit: print(f"{step.name}: killed after {step.limit:.0f} s")


def verdict(step: Step) -> str:
    return "ok" if step.rc == 0 else f"FAILED (status {step.rc})"


def environment(cache: str) -> dict[str, str]:
    """This environment's programs and kernel first, nothing of the user's Jupyter configuration, and an empty cache: Numba keeps what it
    compiled for a notebook by the text of its cell alone, and would meet code compiled against another version of the cell before it."""
    return {**os.environ, "XDG_CACHE_HOME": cache, "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', os.defpath)}", "JUPYTER_PREFER_ENV_PATH": "1",
            "PYDEVD_DISABLE_FILE_VALIDATION": "1", "PYTHONUTF8": "1"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="STEP", help="run this step only (may be repeated)")
    parser.add_argument("--list", action="store_true", help="name the steps and stop")
    parser.add_argument("--jobs", type=int, default=2, help="parallel workers for the test steps (default 2)")
    args = parser.parse_args()
    run_dir = Path(tempfile.mkdtemp(prefix="scalp-replay-")) / "run"
    todo = steps(args.jobs, run_dir)
    if unknown := set(args.only or ()) - {s.name for s in todo}: parser.error(f"no step {sorted(unknown)}; there are {[s.name for s in todo]}")
    if args.only: todo = [s for s in todo if s.name in args.only]
    if args.list:
        for s in todo: print(f"{s.name:8} {' '.join(s.argv)}")
    else:
        cache = run_dir.parent / "cache"
        cache.mkdir()
        for n, s in enumerate(todo, 1):
            print(f"\n==> [{n}/{len(todo)}] {s.name}", flush=True)
            run(s, environment(str(cache)))
            print(f"<== {s.name}: {verdict(s)} in {s.seconds:.1f} s", flush=True)
            if s.rc: print(f"    What to do: {s.hint}.", flush=True)
        report(todo)
    failed = [s for s in todo if s.rc]
    if not any(s.name == "replay" for s in failed): shutil.rmtree(run_dir.parent)
    return 1 if failed else 0


def report(todo: list[Step]) -> None:
    "The table, and pytest's own closing lines."
    print(f"\n{'step':10}{'seconds':>9}  result")
    for s in todo: print(f"{s.name:10}{s.seconds:9.1f}  {verdict(s)}")
    failed = ", ".join(s.name for s in todo if s.rc)
    print(f"{'total':10}{sum(s.seconds for s in todo):9.1f}  {f'FAILED: {failed}' if failed else 'ok'}")
    for s in sorted(todo, key=lambda s: s.name == "pytest"):   # the main suite's line last
        for line in s.closing: print(f"{s.name}:\n{line}", flush=True)


if __name__ == "__main__": sys.exit(main())
