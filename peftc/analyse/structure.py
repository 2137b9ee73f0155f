"""Which modules a model repeats, and so which block and layer a node lies in."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx, nn

from peftc.graphs.reading import module_stack
from peftc.graphs.shared_modules import joined


def block_paths(root: nn.Module) -> Mapping[str, int]:
    """Path of every outermost child of a list of modules, with its number in the list: the first, of one that has several.

    A list is a `ModuleList`, or a `Sequential` of modules of one class which have modules in them.
    """
    found: dict[str, int] = {}
    numbers: dict[int, int] = {}
    for path, module in root.named_modules(remove_duplicate=False):
        if not is_list(module) or any(path.startswith(f"{block}.") for block in found):
            continue
        for number, (name, child) in enumerate(module._modules.items()):  # noqa: SLF001 - elsewhere each is given once
            if child is not None and next(child.parameters(), None) is not None:
                found[joined(path, name)] = numbers.setdefault(id(child), number)
    return found


def is_list(module: nn.Module) -> bool:
    """Whether a module's children are blocks."""
    if isinstance(module, nn.ModuleList):
        return True
    children = list(module) if isinstance(module, nn.Sequential) else []
    alike = len({type(child) for child in children}) == 1 and not isinstance(children[0], nn.Sequential)
    return len(children) > 1 and alike and all(next(child.children(), None) is not None for child in children)


def block_of(node: fx.Node, blocks: Mapping[str, int]) -> tuple[str, str] | None:
    """(path, call) of the block that a node was traced in."""
    for path, call in module_stack(node):
        if path in blocks:
            return path, call
    return None
