"""What the policies of schedules do. Each changes parameters in place, between two steps of the optimiser.

A policy is made once for all the sites of its section. `update` is told the step and the number of all steps;
what it draws or decides depends on these and on its `state` alone, so that training can be resumed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from peftc.errors import ScheduleError
from peftc.lang import Axes, Constant

Targets = Mapping[str, Tensor]
"""The parameters of one site, by what the policy calls them."""


class Running(Protocol):
    """A policy at work.

    Attributes:
        state: tensors that the next update depends on, besides the parameters themselves.
    """

    state: dict[str, Tensor]

    def __init__(
        self, settings: Mapping[str, Constant], layers: Sequence[int | None], axes: Mapping[str, Axes]
    ) -> None:
        """Settings by name, the layer of each site, and the axes of each parameter."""

    def update(self, sites: Sequence[Targets], step: int, total: int) -> None:
        """Change the parameters, `step` of `total` steps having been taken. Gradients are those of the last."""

    def set(self, sites: Sequence[Targets], values: Mapping[str, Constant]) -> None:
        """Set what a person can set: values by name, among those that the policy `sets`."""


@dataclass
class Ramp:
    """A number that moves from `start` to `stop`."""

    settings: Mapping[str, Constant]
    layers: Sequence[int | None]
    axes: Mapping[str, Axes]
    state: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a ramp that ends before it begins."""
        if float(self.settings["begin"]) >= float(self.settings["end"]):
            said = f"begin = {self.settings['begin']} is not before end = {self.settings['end']}"
            raise ScheduleError(f"a ramp cannot go backwards: {said}")

    def value(self, step: int, total: int) -> float:
        """The number after a step."""
        begin, end, start, stop = (float(self.settings[name]) for name in ("begin", "end", "start", "stop"))
        way = min(max((step / max(total, 1) - begin) / (end - begin), 0.0), 1.0)
        moved = {"linear": way, "cosine": (1 - math.cos(math.pi * way)) / 2, "cubic": 1 - (1 - way) ** 3}
        return start + (stop - start) * moved[str(self.settings["shape"])]

    def update(self, sites: Sequence[Targets], step: int, total: int) -> None:
        """Set the number everywhere."""
        self.set(sites, {"value": self.value(step, total)})

    def set(self, sites: Sequence[Targets], values: Mapping[str, Constant]) -> None:
        """Set the number everywhere."""
        for targets in sites:
            targets["value"].fill_(float(values["value"]))


@dataclass
class DropLayers:
    """Robust AdapterDrop: the first n layers are off for one step (https://arxiv.org/abs/2010.11918, 3.2)."""

    settings: Mapping[str, Constant]
    layers: Sequence[int | None]
    axes: Mapping[str, Axes]
    state: dict[str, Tensor] = field(default_factory=dict)

    def update(self, sites: Sequence[Targets], step: int, total: int) -> None:
        """Draw n, the same in every process, and turn the layers off and on. After the last step all are on."""
        generator = torch.Generator().manual_seed(int(self.settings["seed"]) * 1_000_003 + step)
        # One layer at least stays on: without any there is nothing to train.
        most = min(
            int(self.settings["most"]), max((layer for layer in self.layers if layer is not None), default=0)
        )
        dropped = 0 if step >= total else int(torch.randint(most + 1, (), generator=generator))
        self.turn(sites, "keep", dropped)

    def set(self, sites: Sequence[Targets], values: Mapping[str, Constant]) -> None:
        """Turn the first n layers off, and the others on, in training and out of it."""
        if int(values["dropped"]) != values["dropped"]:
            raise ScheduleError(f"dropped must be a whole number of layers, not {values['dropped']}")
        self.turn(sites, "kept", int(values["dropped"]))

    def turn(self, sites: Sequence[Targets], name: str, dropped: int) -> None:
        """0 in the first n layers, 1 in the others; sites outside of any layer stay on."""
        for targets, layer in zip(sites, self.layers, strict=True):
            targets[name].fill_(0.0 if layer is not None and layer < dropped else 1.0)


def ranks_of(sites: Sequence[Targets]) -> int:
    """How many ranks sites have together, cut ones among them."""
    return sum(targets["value"].numel() for targets in sites)


@dataclass
class RankBudget:
    """AdaLoRA's allocation of ranks (https://arxiv.org/abs/2303.10512, equations 8 to 12)."""

    settings: Mapping[str, Constant]
    layers: Sequence[int | None]
    axes: Mapping[str, Axes]
    state: dict[str, Tensor] = field(default_factory=dict)

    def number(self, name: str) -> int:
        """A setting that is a whole number."""
        return int(self.settings[name])

    def update(self, sites: Sequence[Targets], step: int, total: int) -> None:
        """Weigh the ranks by the gradients of the last step, and cut those that are over the budget."""
        last = total - self.number("cooldown")
        if last <= self.number("warmup"):
            raise ScheduleError(
                f"{total} steps are too few for a warmup of {self.number('warmup')} and a cooldown of "
                f"{self.number('cooldown')}",
                hint="train for more steps, or make these options smaller",
            )
        if self.number("target") * len(sites) > ranks_of(sites):
            raise ScheduleError(
                f"a target of {self.number('target')} ranks on average is more than there are: {ranks_of(sites)} at "
                f"{len(sites)} sites",
                hint="make the target smaller, or give the sites more ranks",
            )
        if step < 1:
            return
        if step > 1 and ("kept" not in self.state if step > last else not self.state):
            raise ScheduleError(
                f"step {step} of {total}, but nothing is known of the steps before",
                hint="go on from what `compiled.schedules.state_dict()` gave there, or begin with step 1",
            )
        if step < last:
            self.weigh(sites)
        if self.number("warmup") < step < last and step % self.number("every") == 0:
            self.keep(sites, self.budget(sites, step, last))
        elif step == last:
            self.state["kept"] = self.keep(sites, self.budget(sites, step, last))
        elif step > last:
            self.cut(sites, self.state["kept"])

    def set(self, sites: Sequence[Targets], values: Mapping[str, Constant]) -> None:
        """There is nothing that a person could set."""

    def budget(self, sites: Sequence[Targets], step: int, last: int) -> int:
        """How many ranks are left after a step: cubic from all of them to the target."""
        first = ranks_of(sites)
        target = self.number("target") * len(sites)
        left = 1 - (step - self.number("warmup")) / (last - self.number("warmup"))
        return int((first - target) * left**3 + target)

    def weigh(self, sites: Sequence[Targets]) -> None:
        """Sensitivity |w · ∂w|, its average and its uncertainty."""
        one, two = float(self.settings["beta1"]), float(self.settings["beta2"])
        for number, targets in enumerate(sites):
            for name, parameter in targets.items():
                if parameter.grad is None:
                    raise ScheduleError(
                        f"a rank budget needs gradients, and {name!r} of site {number} has none",
                        hint="update schedules after optimizer.step() and before zero_grad()",
                    )
                # Over a longer average the product of half-precision numbers would underflow.
                sensitivity = (parameter.detach() * parameter.grad).abs().float()
                average = self.held(f"{number}.{name}.average", sensitivity)
                average.mul_(one).add_(sensitivity, alpha=1 - one)
                uncertainty = self.held(f"{number}.{name}.uncertainty", sensitivity)
                uncertainty.mul_(two).add_((sensitivity - average).abs(), alpha=1 - two)

    def held(self, name: str, like: Tensor) -> Tensor:
        """A running average, from 0 on."""
        if name not in self.state:
            self.state[name] = torch.zeros_like(like)
        return self.state[name]

    def scores(self, number: int, targets: Targets) -> Tensor:
        """The importance of each rank at one site: of its value, and the means over its row and its column."""
        count = targets["value"].numel()
        score = torch.zeros(count, device=targets["value"].device)
        for name in targets:
            average, uncertainty = (
                self.state[f"{number}.{name}.{kind}"] for kind in ("average", "uncertainty")
            )
            each = average * uncertainty
            rank = self.axes[name].index(self.axes["value"][0])
            others = [axis for axis in range(each.dim()) if axis != rank]
            score = score + (each.mean(others) if others else each)
        return score

    def keep(self, sites: Sequence[Targets], budget: int) -> Tensor:
        """Cut all ranks but so many; which are kept, for all sites in a row."""
        scores = torch.cat([self.scores(number, targets) for number, targets in enumerate(sites)])
        kept = torch.zeros_like(scores, dtype=torch.bool)
        kept[scores.argsort(descending=True, stable=True)[:budget]] = True
        self.cut(sites, kept)
        return kept

    def cut(self, sites: Sequence[Targets], kept: Tensor) -> None:
        """Set the values that are not kept to 0."""
        pieces = kept.split([targets["value"].numel() for targets in sites])
        for targets, piece in zip(sites, pieces, strict=True):
            targets["value"].masked_fill_(~piece.to(targets["value"].device), 0.0)
