"""The policies a schedule can name: what they change, by which settings, and, as a text, what carries them out.

Nothing here runs: `runs` is the dotted name of a class, so no torch is imported. An installed plugin adds its
own with `register_policy`; a rule can only name what is registered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from peftc.lang.axes import Axes, AxesError, show
from peftc.lang.operations import Setting


@dataclass(frozen=True)
class Target:
    """A parameter that a policy works on, at every site of its section. A frozen one is the policy's alone."""

    doc: str
    trainable: bool


@dataclass(frozen=True)
class Policy:
    """One word of the vocabulary. `axes` raises AxesError where the axes of its parameters do not go together.

    `sets` is what a person can set at any time, such as what holds in use after training.
    """

    name: str
    doc: str
    takes: Mapping[str, Target]
    axes: Callable[[Mapping[str, Axes]], None]
    settings: Mapping[str, Setting]
    runs: str
    paper: str = ""
    sets: Mapping[str, Setting] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def call(self) -> str:
        """What it takes, as a hint."""
        return f"{self.name} takes {', '.join(self.takes)}; its settings: {', '.join(self.settings)}"


POLICIES: dict[str, Policy] = {}


def register_policy(policy: Policy) -> Policy:
    """Add a policy to the vocabulary. Raises ValueError where the name is taken."""
    if POLICIES.get(policy.name, policy) != policy:
        raise ValueError(f"there is a policy {policy.name!r} already")
    POLICIES[policy.name] = policy
    return policy


def _any(_axes: Mapping[str, Axes]) -> None:
    """Any axes."""


def _numbers(axes: Mapping[str, Axes]) -> None:
    """Single numbers."""
    for name, found in axes.items():
        if found:
            raise AxesError(f"{name} must be a single number, but has the axes {show(found)}")


def _ranks(axes: Mapping[str, Axes]) -> None:
    """`value` has one axis, which `left` and `right` have too."""
    if len(axes["value"]) != 1:
        raise AxesError(f"value must have one axis, but has {show(axes['value'])}")
    for name in ("left", "right"):
        if axes["value"][0] not in axes[name]:
            raise AxesError(f"{name} has no axis {axes['value'][0]!r}, but {show(axes[name])}")


def _steps(doc: str, default: int | None = 0, least: int = 0) -> Setting:
    return Setting("number", doc, default=default, min=least)


def _share(doc: str, default: float) -> Setting:
    return Setting("number", doc, default=default, min=0, max=1)


for _policy in (
    Policy(
        "ramp",
        "Moves a number from one value to another in the course of training.",
        MappingProxyType({"value": Target("What is set to the number, whatever its axes.", trainable=False)}),
        _any,
        MappingProxyType(
            {
                "start": Setting("number", "The first value."),
                "stop": Setting("number", "The last value."),
                "shape": Setting(
                    "choice", "How it moves.", default="linear", choices=("linear", "cosine", "cubic")
                ),
                "begin": _share("From which share of all steps on it moves.", 0.0),
                "end": _share("At which share of all steps it has arrived.", 1.0),
            }
        ),
        "peftc.runtime.policies.Ramp",
        sets=MappingProxyType({"value": Setting("number", "The number, until the next step of a training.")}),
    ),
    Policy(
        "drop_layers",
        "Turns the first n layers off, n drawn anew for each step from 0 to `most`, all alike. The last layer stays on.",
        MappingProxyType(
            {
                "keep": Target(
                    "1 where the layer acts at a step, 0 where it is off: one a layer.", trainable=False
                ),
                "kept": Target("1, but 0 where a person turned the layer off.", trainable=False),
            }
        ),
        _numbers,
        MappingProxyType(
            {
                "most": _steps("The largest n.", None),
                "seed": _steps("What n is drawn with, together with the step."),
            }
        ),
        "peftc.runtime.policies.DropLayers",
        paper="https://arxiv.org/abs/2010.11918",
        sets=MappingProxyType({"dropped": _steps("How many of the first layers are off.", None)}),
    ),
    Policy(
        "rank_budget",
        "Gives a shrinking budget of ranks to the sites where they matter: the least important values become 0. "
        "A rank's importance is that of its value and the means over its row and column, each an average of "
        "|w · ∂w| times its uncertainty.",
        MappingProxyType(
            {
                "value": Target("One number a rank.", trainable=True),
                "left": Target("What the ranks are put out by.", trainable=True),
                "right": Target("What the ranks are read by.", trainable=True),
            }
        ),
        _ranks,
        MappingProxyType(
            {
                "target": _steps("How many ranks a site has at the end, on average.", None, 1),
                "warmup": _steps("Steps before the budget begins to shrink."),
                "cooldown": _steps("Steps at the end, for which the ranks stay as they are."),
                "every": _steps("Steps from one cut to the next.", 1, 1),
                "beta1": _share("How long the average of the importance reaches back.", 0.85),
                "beta2": _share("How long that of the uncertainty does.", 0.85),
            }
        ),
        "peftc.runtime.policies.RankBudget",
        paper="https://arxiv.org/abs/2303.10512",
    ),
):
    register_policy(_policy)
