"""README.md from nbs/index.ipynb, without quarto. `python tests/gates/readme.py` writes it (`make readme`).

Cells with `#| hide` are dropped, directive lines are stripped, and relative links, which in the notebook are relative to nbs/, are made
relative to the repository root. Pictures live in nbs/images and are referenced in markdown; a picture in a cell's output is refused.
"""

import os
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[2]
NOTICE = "<!-- Generated from nbs/index.ipynb by `make readme`: edit the notebook, not this file. -->\n\n"
HIDE = re.compile(r"^#\|\s*hide\s*$", re.M)
DIRECTIVE = re.compile(r"^#\|.*\n?", re.M)
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s]+)((?:\s+\"[^\"]*\")?\))|(<img\s[^>]*src=\")([^\"]+)(\")")


def render(
    index: Path,  # the notebook
) -> str:  # markdown text of the README
    "What README.md has to be."
    nb = nbformat.read(index, 4)
    nb.metadata["language_info"] = {"name": "python"}   # nbdev_clean removes it; it names the fences' language
    nb.cells = [c for c in nb.cells if not HIDE.search(c.source)]
    for cell in nb.cells:
        cell.source = DIRECTIVE.sub("", cell.source).strip() if cell.cell_type == "code" else cell.source
        if any("image/png" in o.get("data", {}) for o in cell.get("outputs", [])):
            raise SystemExit(f"{index.name}: a cell has a picture as output. Save it in nbs/images and refer to it in markdown.")
    text, _ = MarkdownExporter().from_notebook_node(nb)
    text = re.sub(r"<style.*?</style>\n*", "", text, flags=re.S)
    text = re.sub(r"[ \t]+$", "", text, flags=re.M)
    text = re.sub(r"\n{3,}", "\n\n", text)
    return NOTICE + outside_code(text, index.parent.name).strip() + "\n"


def outside_code(text: str, folder: str) -> str:
    "Rebase links, except in fenced code."
    parts = re.split(r"(^```.*?^```$)", text, flags=re.S | re.M)
    return "".join(p if p.startswith("```") else LINK.sub(lambda m: rebase(m, folder), p) for p in parts)


def rebase(match: re.Match[str], folder: str) -> str:
    "One link, from relative to `folder` to relative to the root."
    a, target, b = match.group(1, 2, 3) if match[2] else match.group(4, 5, 6)
    if not is_relative(target): return match[0]
    return f"{a}{Path(os.path.normpath(Path(folder) / target)).as_posix()}{b}"


def is_relative(target: str) -> bool:
    return not re.match(r"[a-z][a-z0-9+.-]*:|#|/", target, re.I)


def broken_links(text: str, root: Path) -> list[str]:
    "Relative targets in `text` that do not exist under `root`."
    targets: list[Any] = [m[2] or m[5] for m in LINK.finditer(re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M))]
    return [t for t in targets if is_relative(t) and not (root / t.split("#")[0]).exists()]


if __name__ == "__main__":
    (ROOT / "README.md").write_text(render(ROOT / "nbs" / "index.ipynb"), encoding="utf-8")
    print(f"README.md written from nbs/index.ipynb by {Path(sys.argv[0]).name}")
