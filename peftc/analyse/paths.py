"""Paths of modules and parameters."""

from __future__ import annotations

from torch import Tensor, nn


def is_ours(path: str) -> bool:
    """Whether a parameter was put in by peftc."""
    return "peftc" in path.split(".")


def lookup(root: nn.Module, path: str) -> Tensor:
    """The tensor at a path."""
    owner, _, name = path.rpartition(".")
    tensor = getattr(root.get_submodule(owner), name)
    assert isinstance(tensor, Tensor)
    return tensor


def common_path(one: str, other: str) -> str:
    """The longest module path that two paths share."""
    shared = []
    for a, b in zip(one.split("."), other.split("."), strict=False):
        if a != b:
            break
        shared.append(a)
    return ".".join(shared)
