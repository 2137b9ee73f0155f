"""The order of the passes that give every captured graph one spelling."""

from __future__ import annotations

from torch import fx

from peftc.capture.attention import GroupHeads, RecogniseAttention, SpellAttention
from peftc.capture.functional import MakeFunctional
from peftc.capture.masks import FoldMasks, content_of
from peftc.capture.modes import OuterProducts, ReadModeAtRunTime
from peftc.capture.noise import RemoveAsserts, RemoveDeadCode, RemoveEmptyParts, RemoveNoOps
from peftc.capture.norms import RecogniseRmsNorm
from peftc.graphs.program import Program, copy_graph
from peftc.graphs.reading import ancestors, is_call, value
from peftc.passes import PassRecord, Pipeline


def pipeline(training: bool, mixed: bool = False) -> Pipeline:
    """The passes that run on every capture, in order."""
    return Pipeline(
        (
            RemoveAsserts(),
            MakeFunctional(),
            RemoveNoOps(),
            RemoveEmptyParts(),
            ReadModeAtRunTime(training, mixed),
            OuterProducts(),
            RecogniseRmsNorm(),
            RemoveDeadCode(),
            SpellAttention(),
            RecogniseAttention(),
            FoldMasks(),
            GroupHeads(),
            RemoveDeadCode(),
        )
    )


def normalise(program: Program) -> tuple[Program, tuple[PassRecord, ...]]:
    """A program with its graph in one spelling, and what each pass did."""
    graph, _ = copy_graph(program.graph)
    records = pipeline(program.training, program.mixed).run(graph)
    return program.with_graph(graph), records


def for_ones(program: Program) -> Program | None:
    """The same program for calls whose mask inputs are all ones, if that lets go of masks; else None."""
    masks = [
        mask
        for node in program.graph.nodes
        if is_call(node, "scaled_dot_product_attention")
        and isinstance(mask := node.kwargs["attn_mask"], fx.Node)
    ]
    sources = {node for mask in masks for node in content_of(mask, set(ancestors(mask)))}
    ones = tuple(sorted(node.name for node in sources if not value(node).dtype.is_floating_point))
    if not ones:
        return None
    graph, _ = copy_graph(program.graph)
    if not FoldMasks(ones).run(graph):
        return None
    RemoveDeadCode().run(graph)
    return program.with_graph(graph, ones=ones)
