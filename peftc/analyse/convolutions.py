"""Convolutions with a kernel of the model. Each is a linear map: of all that it reads for one place to all that it makes.

So its matrix is [d_out d_in] with d_in = input channels × kernel, and one of groups is a stack of such matrices.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from peftc.analyse.views import view_of
from peftc.graphs.reading import argument, is_call, is_tensor, shape

CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
GROUPS = "groups"


@dataclass(frozen=True)
class Kernel:
    """One convolution.

    Attributes:
        node: the call; x is its first argument [batch channels place…].
        weight, bias: paths; bias is None where there is none.
        groups: how many groups its channels are in.
        d_in: numbers that it reads for each number that it makes.
        d_out: channels of one group that it makes.
    """

    node: fx.Node
    weight: str
    bias: str | None
    groups: int
    d_in: int
    d_out: int

    @property
    def sizes(self) -> dict[str, int]:
        """Its axes and their sizes."""
        stack = {GROUPS: self.groups} if self.groups > 1 else {}
        return {"d_in": self.d_in, "d_out": self.d_out, **stack}

    @property
    def said(self) -> str:
        """What it is, in a line."""
        weight = self.node.args[1]
        assert isinstance(weight, fx.Node)
        kernel = " × ".join(map(str, shape(weight)[2:]))
        return f"a convolution of {kernel}" + (f" in {self.groups} groups" if self.groups > 1 else "")


def convolutions(graph: fx.Graph) -> Iterator[Kernel]:
    """Every convolution of a batch with a parameter of the model, in graph order."""
    for node in graph.nodes:
        if not is_call(node, *CONVOLUTIONS) or not is_tensor(node.args[0]):
            continue
        weight, bias = view_of(node.args[1]), view_of(argument(node, "bias"))
        if weight is None or not weight.is_whole:
            continue
        sizes, groups = weight.sizes, int(argument(node, "groups", 1))
        if len(shape(node.args[0])) != len(sizes):  # one example without a batch
            continue
        path = str(bias.parameter.target) if bias is not None and bias.is_whole else None
        d_in, d_out = math.prod(sizes[1:]), sizes[0] // groups
        yield Kernel(node, str(weight.parameter.target), path, groups, d_in, d_out)
