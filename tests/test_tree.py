"""docs/tree.md is true: it names every module once, in its folder, and its spines are as short as they say.

Trusted because it compares the page with what git would list, both ways.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/tree.md").read_text(encoding="utf-8")
PACKAGES = ("prompts", "backend", "train", "lens_cli", "benchmarks")
MOST = 18  # modules in one folder
SPINES = {"A picture": (15, 3000), "A training step": (14, 2500)}  # files, lines


def listed() -> list[str]:
    """The paths that the page names with a phrase, folder by folder."""
    paths, folder = list[str](), ""
    for line in PAGE.splitlines():
        if found := re.fullmatch(r"### ([\w/]+/)", line):
            folder = found[1]
        elif found := re.fullmatch(r"\* `(\w+\.py)`: (\S.+)", line):
            assert folder, line
            paths.append(folder + found[1])
    return paths


def modules() -> list[str]:
    found = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return [str(p.relative_to(ROOT)) for p in found if p.name != "__init__.py" or p.parent == ROOT / "prompts"]


def test_every_module_is_named_once() -> None:
    assert sorted(listed()) == sorted(modules())


def test_no_folder_is_a_hall() -> None:
    sizes = Counter(str(Path(path).parent) for path in modules())
    assert {folder: size for folder, size in sizes.items() if size > MOST} == {}


def test_the_folders_of_the_packages_hold_no_code_of_their_own() -> None:
    """Only `prompts`, which holds its loader, has more than an empty `__init__.py`."""
    inits = [path for package in PACKAGES for path in (ROOT / package).rglob("__init__.py")]
    assert [str(path.relative_to(ROOT)) for path in inits if path.stat().st_size] == ["prompts/__init__.py"]


@pytest.mark.parametrize("title", SPINES)
def test_a_spine_is_short(title: str) -> None:
    section = PAGE.split(f"### {title}\n")[1].split("\n#")[0]
    files = re.findall(r"^\d+\. `([\w/]+\.py)`: \S", section, re.MULTILINE)
    lines = sum(len((ROOT / file).read_text(encoding="utf-8").splitlines()) for file in files)
    most_files, most_lines = SPINES[title]
    assert 5 < len(files) <= most_files and lines <= most_lines, (len(files), lines)
