"""The optimizers of `peftc finetune` by name, and what of them this machine lacks. Makes none: a Trainer does."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from types import MappingProxyType

from peftc.errors import ModelError

SMALL = 4096  # bitsandbytes keeps 8 bits for tensors of so many numbers and more


@dataclass(frozen=True)
class Optimizer:
    """One choice.

    Attributes:
        trainer: what a Trainer calls it.
        packaged: whether it is bitsandbytes'.
        unpaged: of one whose memory can move out of an accelerator's when that is short: the choice that it is
            where there is no accelerator.
    """

    trainer: str
    packaged: bool = True
    unpaged: str | None = None

    @property
    def paged(self) -> bool:
        """Whether it needs an accelerator to be what it is called."""
        return self.unpaged is not None


OPTIMIZERS: Mapping[str, Optimizer] = MappingProxyType(
    {
        "adamw": Optimizer("adamw_torch_fused", packaged=False),
        "adamw-8bit": Optimizer("adamw_bnb_8bit"),
        "paged-adamw": Optimizer("paged_adamw_32bit", unpaged="adamw"),
        "paged-adamw-8bit": Optimizer("paged_adamw_8bit", unpaged="adamw-8bit"),
        "lion-8bit": Optimizer("lion_8bit"),
        "paged-lion-8bit": Optimizer("paged_lion_8bit", unpaged="lion-8bit"),
    }
)


def check_optimizer(name: str) -> None:
    """Raises ModelError where an optimizer's package is missing."""
    if OPTIMIZERS[name].packaged and find_spec("bitsandbytes") is None:
        raise ModelError(f"the optimizer {name} is bitsandbytes'", hint='pip install "peftc[quant]"')


def notes_on(name: str, *, accelerator: bool) -> Iterator[str]:
    """What a person should know of an optimizer on this machine, a line each."""
    optimizer = OPTIMIZERS[name]
    if optimizer.paged and not accelerator:
        yield (
            f"--optimizer {name}: pages are an accelerator's; on the CPU all that it remembers stays in memory, "
            f"as that of {optimizer.unpaged} does"
        )
    if "8bit" in name:
        yield f"--optimizer {name}: of tensors with less than {SMALL:,} numbers it remembers 32 bits, not 8"


@contextmanager
def noted() -> Iterator[None]:
    """Without bitsandbytes' own warning of what `notes_on` says."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")
        yield
