"""The paths of modules that are children of several others, or several times of one: the first stands for all.

One layer that is called at every depth is such a module, and an attention that two blocks have. Its weights are one set,
so all that is said of them is said by one path, in whichever place of the model they are read.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn


class SharedModules:
    """Which modules of a model have several paths."""

    def __init__(self, root: nn.Module) -> None:
        known: dict[int, str] = {}
        self.firsts: dict[str, str] = {}
        self.paths: dict[str, list[str]] = {}
        for path, module in root.named_modules(remove_duplicate=False):
            first = known.setdefault(id(module), path)
            if first != path:
                self.firsts[path] = first
                self.paths.setdefault(first, [first]).append(path)

    def first(self, path: str) -> str:
        """The first of the paths of what is at a path: a module, a tensor of one, or what is put beside them."""
        for head, rest in splits(path) if self.firsts else ():
            if head in self.firsts:
                return joined(self.firsts[head], rest)
        return path

    def all(self, path: str) -> list[str]:
        """Every path of what is at a path."""
        path = self.first(path)
        for head, rest in splits(path) if self.paths else ():
            if head in self.paths:
                return [joined(each, rest) for each in self.paths[head]]
        return [path]

    def below(self, path: str, root: str) -> str | None:
        """What is at a path, as the module at `root` sees it; None where that does not contain it by any path."""
        places: list[str] = [path, *(self.all(path) if self.paths else ())]
        for each in places:
            if not root or each == root:
                return each[len(root) :]
            if each.startswith(f"{root}."):
                return each[len(root) + 1 :]
        return None


def splits(path: str) -> Iterator[tuple[str, str]]:
    """Every way to split a path into that of a module and what is below it, the longest module first."""
    words = path.split(".")
    for count in range(len(words), 0, -1):
        yield ".".join(words[:count]), ".".join(words[count:])


def joined(*parts: str) -> str:
    """Words of a path put together."""
    return ".".join(part for part in parts if part)
