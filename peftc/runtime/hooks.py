"""Says of hooks that are never called that they are not: only the whole model and its blocks run as modules."""

from __future__ import annotations

import types
import warnings
from typing import Any

from torch import nn

REGISTER = (
    "register_forward_hook",
    "register_forward_pre_hook",
    "register_full_backward_hook",
    "register_full_backward_pre_hook",
)


def warn_of_hooks(module: nn.Module, path: str) -> None:
    """Let a module whose work is done inside a captured graph warn whoever hooks it.

    The hook is registered all the same: it is called where the module itself is.
    """
    for name in REGISTER:
        object.__setattr__(module, name, types.MethodType(warning_register(name, path), module))


def warning_register(name: str, path: str) -> Any:
    """The method `name` of a module at `path`, with a warning in front."""

    def register(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        warnings.warn(
            f"{path} runs as part of a captured graph, so a hook on it is not called when the whole model is; "
            "hook the model or one of its repeated blocks",
            stacklevel=2,
        )
        return getattr(type(self), name)(self, *args, **kwargs)

    return register
