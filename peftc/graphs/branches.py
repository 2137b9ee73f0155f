"""Branches that a model's code takes by what data says: a program holds one side, and checks it in every call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from peftc.errors import BranchError

MARK: Any = torch.ops.aten._assert_async.msg  # noqa: SLF001 - the one operator that tracing leaves where it is
BRANCH = "peftc branch "  # with its number: the message by which a trace marks a branch


def expect(holds: Tensor, number: int) -> None:
    """Go on where data says what it was captured for.

    Args:
        holds: one truth value.
        number: which of the program's branches this is, in the order in which the code comes to them.

    Raises:
        BranchError: it says the other.
    """
    if not bool(holds):
        raise BranchError(number)
