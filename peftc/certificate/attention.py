"""Which keys each query sees, attention by attention: read off what a compiled module's own programs compute."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from peftc.certificate.subject import Arguments, Subject, run
from peftc.errors import BranchError
from peftc.graphs.program import copy_graph
from peftc.graphs.reading import is_attention, module_path

Seen = dict[str, tuple[str, Tensor]]
"""Name of an attention's node → path of its module, and [... queries keys]: whether a query sees a key."""


class Looking(fx.Interpreter):
    """Runs a program and keeps which keys its attentions show to their queries, whatever these hold."""

    def __init__(self, root: Any, graph: fx.Graph) -> None:
        super().__init__(fx.GraphModule(root, copy_graph(graph)[0]))
        self.seen: Seen = {}

    def run_node(self, n: fx.Node) -> Any:
        """The value of a node; of an attention, its weights too where all scores are alike."""
        if is_attention(n):
            (query, key, value, *rest), kwargs = self.fetch_args_kwargs_from_env(n)
            keys = key.shape[-2]
            each = torch.eye(keys, dtype=value.dtype, device=value.device)
            each = each.expand(*value.shape[:-2], keys, keys)
            weights = n.target(torch.zeros_like(query), torch.zeros_like(key), each, *rest, **kwargs)  # type: ignore[operator]
            self.seen[n.name] = (module_path(n), weights > 0)
        return super().run_node(n)


def seen_in(subject: Subject, arguments: Arguments) -> Seen:
    """What the attentions of a call see, in the program that the module runs for it."""
    engine = subject.compiled._peftc  # noqa: SLF001 - the certificate looks into what it certifies
    run(subject.compiled, arguments)  # captures what serves the call, if nothing does yet
    with torch.no_grad():
        key, call = engine.read("", subject.compiled, (), arguments)
        for entry in engine.programs.get(key, ()):
            if not entry.fits(call.tensors):
                continue
            given = [call.arguments[name] for name in entry.program.given]
            looking = Looking(engine.root, entry.for_call(call).rewritten)
            try:
                looking.run(*call.tensors, *given)
            except BranchError:  # the data say otherwise than where this one was captured
                continue
            return looking.seen
    return {}


def strangers(subject: Subject, arguments: Arguments) -> tuple[int, int, str]:
    """How many pairs of query and key the attentions have, how many see or hide what the model does not, and one.

    Keys and queries in front, which rules put there, are left out.
    """
    ours = seen_in(subject, arguments)
    with subject.compiled.disable_adapter():
        plain = seen_in(subject, arguments)
    total, wrong, where = 0, 0, ""
    for name in ours.keys() & plain.keys():
        path, want = plain[name]
        _, got = ours[name]
        got = got[..., -want.shape[-2] :, -want.shape[-1] :]
        total += want.numel()
        if got.shape != want.shape or not bool((different := got != want).any()):
            continue
        wrong += int(different.sum())
        *_, query, key = (int(each) for each in different.nonzero()[0])
        does = "sees" if bool(got[tuple(different.nonzero()[0])]) else "does not see"
        where = where or f"at {path} query {query} {does} key {key}, otherwise than in the model"
    return total, wrong, where
