"""Which keys each query sees, attention by attention: read off what a compiled module's own programs compute."""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True)
class Compared:
    """What comparing the attentions of a module with those of its model found.

    Attributes:
        pairs: how many pairs of query and key the model's attentions have.
        wrong: how many of them see or hide what they do not in the model; each that is not compared counts as one.
        faults: an attention that is not compared, and a pair that is wrong.
    """

    pairs: int
    wrong: int
    faults: tuple[str, ...]


def compared(subject: Subject, arguments: Arguments) -> Compared:
    """Compare what the attentions of a call see, with adapters on, with what they see in the model.

    Keys and queries in front, which rules put there, are left out. Every attention of the model is compared or told of.
    """
    ours = seen_in(subject, arguments)
    with subject.compiled.disable_adapter():
        plain = seen_in(subject, arguments)
    partner = partners(plain, ours)
    lost = [path for name, (path, _) in plain.items() if name not in partner]
    if not plain:  # no program of the model's own was followed: what it has, its plan tells
        lost = [site.path for site in subject.plan.sites if site.role == "attention"] if ours else []
    pairs, wrong, where = 0, len(lost), ""
    for name, (path, want) in plain.items():
        pairs += want.numel()
        if name not in partner:
            continue
        _, got = ours[partner[name]]
        got = got[..., -want.shape[-2] :, -want.shape[-1] :]
        if got.shape != want.shape:
            wrong += 1
            where = where or f"at {path} queries and keys are {list(got.shape)}, not {list(want.shape)}"
        elif bool((different := got != want).any()):
            wrong += int(different.sum())
            *_, query, key = (int(each) for each in different.nonzero()[0])
            does = "sees" if bool(got[tuple(different.nonzero()[0])]) else "does not see"
            where = where or f"at {path} query {query} {does} key {key}, otherwise than in the model"
    told = f"{len(lost)} attentions of the model are not compared, such as that at {lost[0]}" if lost else ""
    return Compared(pairs, wrong, tuple(each for each in (where, told) if each))


def partners(plain: Seen, ours: Seen) -> dict[str, str]:
    """Name of each of the model's attentions → that of the module's own that is compared with it.

    Those of one name belong together; where a rewrite has renamed some, those that are left of one module do, in order.
    """
    found = {name: name for name, (path, _) in plain.items() if name in ours and ours[name][0] == path}
    left: dict[str, list[str]] = {}
    for name, (path, _) in ours.items():
        if name not in found:
            left.setdefault(path, []).append(name)
    for name, (path, _) in plain.items():
        if name not in found and left.get(path):
            found[name] = left[path].pop(0)
    return found
