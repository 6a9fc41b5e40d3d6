"""Where the real recordings are: used by tests and benchmarks, never shipped with the package."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def main_checkout(root: Path = ROOT) -> Path | None:
    """The checkout a linked git worktree belongs to; None where `root` is the main checkout or no checkout at all."""
    link = root / ".git"
    if not link.is_file():
        return None
    text = link.read_text(encoding="utf-8").strip()
    if not text.startswith("gitdir:"):
        return None
    gitdir = Path(text.removeprefix("gitdir:").strip())
    gitdir = gitdir if gitdir.is_absolute() else (root / gitdir).resolve()
    return gitdir.parents[2] if len(gitdir.parents) > 2 and gitdir.parent.name == "worktrees" else None


def data_root() -> Path | None:
    """SCALP_REALDATA if set, else `../shared/realdata` beside the repository, else beside the main checkout."""
    named = os.environ.get("SCALP_REALDATA")
    if named:
        return Path(named)
    main = main_checkout()
    for base in (ROOT, main) if main else (ROOT,):
        found = base.parent / "shared" / "realdata"
        if found.is_dir():
            return found
    return None


def realdata(path: str) -> Path:
    """The recording at `path` inside the recordings folder; skips the calling test with the reason where it is absent."""
    root = data_root()
    if root is None:
        pytest.skip("recorded market data absent: set SCALP_REALDATA or put it at ../shared/realdata")
    found = root / path
    if not found.exists():
        pytest.skip(f"recording absent: {path} is not in the recordings folder")
    return found
