"""Checks on numbers that a program whose loops go through all that data may pick is the model's own code."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from peftc.capture.flat_call import FlatCall
from peftc.errors import CaptureError


def check_rows(root: nn.Module, flat: FlatCall, exported: ExportedProgram) -> None:
    """Run both on noise, and put back what they change.

    Args:
        root: the module that was traced.
        flat: its call.
        exported: the program.

    Raises:
        CaptureError: they differ, or cannot be run.
    """
    drawn = {name: numbers_like(tensor) for name, tensor in flat.inputs.items()}
    buffers = {buffer: buffer.clone() for buffer in root.buffers()}
    devices = {tensor.get_device() for tensor in root.parameters() if tensor.is_cuda}
    program = exported.module(check_guards=False)
    results = []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices):
            for run in (lambda given: FlatCall(flat.call).run(root, given), lambda given: program(**given)):
                torch.manual_seed(0)
                results.append(run(copy.deepcopy(drawn)))
                for buffer, before in buffers.items():
                    buffer.copy_(before)
        same = len(results[0]) == len(results[1]) and all(map(close, *results))
    except Exception as error:
        raise CaptureError(
            f"{type(root).__name__} loops over what data picks, and what was captured of it cannot be run: {error}"
        ) from error
    if not same:
        raise CaptureError(
            f"{type(root).__name__} loops over what data picks, and does something also for what is not picked",
            hint="write the loop over all that may be picked, so that no number of turns depends on data",
        )


def numbers_like(tensor: Tensor) -> Tensor:
    """Noise, or zeros and ones, in the shape of a tensor."""
    if tensor.is_floating_point():
        return torch.randn_like(tensor)
    return torch.randint(0, 2, tensor.shape, device=tensor.device).to(tensor.dtype)


def close(one: Any, other: Any) -> bool:
    """Whether two leaves of two results are the same but for rounding."""
    if not isinstance(one, Tensor):
        return bool(one == other)
    return torch.allclose(one, other, rtol=1e-3, atol=1e-4, equal_nan=True)
