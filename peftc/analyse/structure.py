"""Which modules a model repeats, and so which block and layer a node lies in."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx, nn

from peftc.graphs.reading import module_stack


def block_paths(root: nn.Module) -> Mapping[str, int]:
    """Path of every outermost child of a `ModuleList`, with its number in the list."""
    found: dict[str, int] = {}
    for path, module in root.named_modules():
        if not isinstance(module, nn.ModuleList) or any(path.startswith(f"{block}.") for block in found):
            continue
        for number, child in enumerate(module):
            if next(child.parameters(), None) is not None:
                found[f"{path}.{number}" if path else str(number)] = number
    return found


def block_of(node: fx.Node, blocks: Mapping[str, int]) -> tuple[str, str] | None:
    """(path, call) of the block that a node was traced in."""
    for path, call in module_stack(node):
        if path in blocks:
            return path, call
    return None
