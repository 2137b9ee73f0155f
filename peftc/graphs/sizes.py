"""What a captured program asks of the sizes of its inputs. Captures nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class SizeConditions:
    """Conditions that branches of the model's code, or its operators, put on sizes while it was traced.

    Attributes:
        fixed: (position of an input, dimension, size) of every dimension that could not be kept general.
        symbols: name of each symbol, with the (position, dimension) that it is the size of.
        conditions: Python expressions over the symbols, as torch wrote them; all must be true.
    """

    fixed: tuple[tuple[int, int, int], ...] = ()
    symbols: Mapping[str, tuple[int, int]] = field(default_factory=dict, hash=False)
    conditions: tuple[str, ...] = ()
    holds: Callable[..., bool] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Make one function of the conditions. They are torch's own printing of a trace, no rule's or user's."""
        source = (
            f"lambda {', '.join(self.symbols)}: {' and '.join(map('({})'.format, self.conditions)) or True}"
        )
        made = eval(source, {"__builtins__": {"min": min, "max": max, "abs": abs}})
        object.__setattr__(self, "holds", made)

    def __bool__(self) -> bool:
        """Whether anything is asked."""
        return bool(self.fixed or self.conditions)

    def hold(self, tensors: Sequence[Tensor]) -> bool:
        """Whether a call's tensors have sizes that the program is right for."""
        for position, dimension, size in self.fixed:
            if tensors[position].shape[dimension] != size:
                return False
        if not self.conditions:
            return True
        return self.holds(
            *[tensors[position].shape[dimension] for position, dimension in self.symbols.values()]
        )
