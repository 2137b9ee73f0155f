"""Imports go one way, from the lower stages to the upper, and reading rules needs no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "peftc"

# A stage imports itself and what stands before it, never what stands after it.
ORDER = (
    "errors",
    "lang",
    "quantised",
    "graphs",
    "passes",
    "capture",
    "analyse",
    "match",
    "rewrite",
    "optimise",
    "emit",
    "runtime",
    "store",
    "inspect",
    "certificate",
    "api",
    "finetune",
    "cli",
)
# The package's own file re-exports api lazily, and `python -m peftc` starts the command line.
ABOVE_ALL = frozenset({"__init__", "__main__"})


def modules() -> list[Path]:
    """Every module of the package."""
    return sorted(PACKAGE.rglob("*.py"))


def stage_of(path: Path) -> str:
    """The stage a file belongs to: its folder below peftc, or its own name."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_stages(path: Path) -> Iterator[tuple[int, str]]:
    """(line, stage) of each import of peftc, also those inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif not isinstance(node, ast.ImportFrom):
            continue
        else:
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            module = node.module or ""
            if module == "peftc":  # the version is no stage
                names = [f"peftc.{alias.name}" for alias in node.names if alias.name != "__version__"]
            else:
                names = [module]
        for name in names:
            parts = name.split(".")
            if parts[0] == "peftc" and len(parts) > 1:
                yield node.lineno, parts[1]


def test_every_stage_has_a_place_in_the_order() -> None:
    stages = {stage_of(path) for path in modules()}
    assert stages - ABOVE_ALL <= set(ORDER)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    stage = stage_of(path)
    if stage in ABOVE_ALL:
        return
    for line, imported in imported_stages(path):
        assert imported in ORDER, f"{path}:{line} imports peftc.{imported}"
        assert ORDER.index(imported) <= ORDER.index(stage), (
            f"{path}:{line}: {stage} imports {imported}, which is above it"
        )


@pytest.mark.parametrize("module", ["peftc", "peftc.lang", "peftc.errors", "peftc.cli"])
def test_no_torch_is_imported(module: str) -> None:
    heavy = {"torch", "transformers"} | ({"networkx", "numpy"} if module == "peftc.lang" else set())
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not heavy & set(done.stdout.split())
