"""The order of the passes that give every captured graph one spelling."""

from __future__ import annotations

from torch import fx

from peftc.capture.attention import GroupHeads, SpellAttention
from peftc.capture.einsums import SimplifyEinsums, SpellEinsums, SpellHeadProducts
from peftc.capture.flattening import KeepTokenAxes
from peftc.capture.functional import MakeFunctional
from peftc.capture.gathers import SpellGathers
from peftc.capture.heads import FlattenGroups
from peftc.capture.masks import FoldMasks, content_of
from peftc.capture.modes import OuterProducts, ReadModeAtRunTime
from peftc.capture.noise import RemoveAsserts, RemoveDeadCode, RemoveEmptyParts, RemoveNoOps
from peftc.capture.products import NumberMatrices, TurnLeftProducts
from peftc.capture.respelling import recognise
from peftc.capture.scores import ReadScores
from peftc.graphs.program import Program, copy_graph
from peftc.graphs.reading import ancestors, is_attention, value
from peftc.passes import AS_MADE, Pass, PassRecord, PassSettings

SPELLINGS = ("layer_norm", "rms_norm", "linear", "gelu_tanh", "quick_gelu", "softmax", "attention")
"""The files of spellings, in the order in which they are recognised."""


def passes(training: bool = False, mixed: bool = False) -> tuple[Pass, ...]:
    """The passes that run on every capture, in order."""
    return (
        RemoveAsserts(),
        SimplifyEinsums(),
        NumberMatrices(),  # first: what is added in place to its product would be seen through views
        MakeFunctional(),
        RemoveNoOps(),
        RemoveEmptyParts(),
        ReadModeAtRunTime(training, mixed),
        OuterProducts(),
        SpellGathers(),
        SpellEinsums(),
        SpellHeadProducts(),
        FlattenGroups(),
        TurnLeftProducts(),
        *(recognise(file)() for file in SPELLINGS),
        KeepTokenAxes(),
        RemoveDeadCode(),
        ReadScores(),
        RemoveDeadCode(),
        SpellAttention(),
        FoldMasks(),
        GroupHeads(),
        RemoveDeadCode(),
    )


CATALOGUE: tuple[type[Pass], ...] = tuple(dict.fromkeys(type(step) for step in passes()))
"""Every kind of pass there is, in the order in which they first run."""


def normalise(program: Program, settings: PassSettings = AS_MADE) -> tuple[Program, tuple[PassRecord, ...]]:
    """A program with its graph in one spelling, and what each pass did."""
    graph, _ = copy_graph(program.graph)
    records = settings.pipeline(passes(program.training, program.mixed)).run(graph)
    return program.with_graph(graph), records


def for_ones(program: Program, settings: PassSettings = AS_MADE) -> Program | None:
    """The same program for calls whose mask inputs are all ones, if that lets go of masks; else None."""
    masks = [
        mask
        for node in program.graph.nodes
        if is_attention(node) and isinstance(mask := node.kwargs["attn_mask"], fx.Node)
    ]
    sources = {node for mask in masks for node in content_of(mask, set(ancestors(mask)))}
    ones = tuple(sorted(node.name for node in sources if not value(node).dtype.is_floating_point))
    if not ones:
        return None
    graph, _ = copy_graph(program.graph)
    fold = settings.set(FoldMasks(ones=ones))
    if fold is None or not fold.run(graph):
        return None
    RemoveDeadCode().run(graph)
    return program.with_graph(graph, ones=ones)
