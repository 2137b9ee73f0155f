"""Grows a call for rules that put rows in front of what the model reads: all that comes with its tokens, before the
call's program is looked up. Tells by a cache whether the rows are in it already.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from peftc.capture.arguments import Kind, is_decoders, is_encoders, is_next_calls, kind_of
from peftc.errors import ProgramError
from peftc.lang.roles import ROLES
from peftc.match.growing import rows_by_part
from peftc.match.plan import Plan
from peftc.runtime.filler import filler_of

UNTRAINED = -100  # what torch's losses leave out
SOURCE, TARGET = "source", "target"


@dataclass(frozen=True)
class Growth:
    """What a plan asks of every call.

    Attributes:
        rows: part of an input → how many rows come in front of it.
        paths: part of an input → paths of the modules that read it.
        places: part of an input → for how many tokens in a row the model has places, if there is such a number.
        filler: a token id that means nothing special: its rows are taken out again.
    """

    rows: Mapping[str, int]
    paths: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    places: Mapping[str, int] = field(default_factory=dict)
    filler: int = 0

    def __bool__(self) -> bool:
        """Whether any input becomes longer."""
        return bool(self.rows)

    def parts_in(self, path: str) -> tuple[str, ...]:
        """The parts of the inputs that are read inside the module at a path."""
        return tuple(
            part
            for part, paths in self.paths.items()
            if any(not path or own == path or own.startswith(f"{path}.") for own in paths)
        )

    def grow(
        self, path: str, names: tuple[str, ...], arguments: Mapping[str, Any]
    ) -> tuple[dict[str, Any], bool]:
        """The arguments of a call of the module at `path`, grown, and whether it goes on from a cache.

        Args:
            names: all that its forward takes.
            arguments: what it was given, by name.

        Raises:
            ProgramError: an argument comes with the tokens and it cannot be told what it is for the rows in front, the
                model has no places for so many tokens, or the call has a cache of a fixed length or in bare tensors.
        """
        inside = self.parts_in(path)
        both = TARGET in inside and any(name.startswith("decoder_") for name in names)
        belongs = {name: part_of(name, inside, both=both) for name in arguments}
        grown, continued = dict(arguments), False
        for part, rows in self.rows.items():
            own = {
                name: value
                for name, value in arguments.items()
                if belongs[name] == part and value is not None
            }
            cached = TARGET if TARGET in inside else SOURCE
            past = length_in_cache(arguments) if part == cached else 0
            if part in inside:
                if part == cached:
                    refuse_fixed_cache(arguments, rows)
                    refuse_bare_cache(arguments, rows)
                side = Side(part, rows, self.filler, self.places.get(part), own, past)
                grown |= side.grown()
                continued |= bool(past)
            if (part == SOURCE and both) or part not in inside:
                grown |= longer_masks(own, arguments, rows)
        return grown, continued


def part_of(name: str, inside: tuple[str, ...], *, both: bool) -> str:
    """Which input an argument comes with."""
    if both:
        return TARGET if is_decoders(name) else SOURCE
    if TARGET in inside and SOURCE not in inside:
        return SOURCE if is_encoders(name) else TARGET
    return SOURCE


@dataclass(frozen=True)
class Side:
    """The arguments of a call that come with one input.

    Attributes:
        past: tokens in the cache that comes with them.
    """

    part: str
    rows: int
    filler: int
    places: int | None
    own: Mapping[str, Any]
    past: int

    @property
    def tokens(self) -> tuple[int, ...] | None:
        """The sizes of the ids, or of what is embedded already but for its last axis; None where a call has neither."""
        for kind in ("ids", "rows"):
            for name, value in self.own.items():
                if kind_of(name) == kind and isinstance(value, Tensor) and value.dim() > 1:
                    return tuple(value.shape if kind == "ids" else value.shape[:-1])
        return None

    @property
    def continues(self) -> bool:
        """Whether the rows are in the cache; a mask as long as cache and tokens says that they are not."""
        if not self.past:
            return False
        masks = [
            value for name, value in self.own.items() if kind_of(name) == "mask" and isinstance(value, Tensor)
        ]
        return all(mask.shape[-1] != self.past + (self.tokens or (0,))[-1] for mask in masks)

    def grown(self) -> dict[str, Any]:
        """The arguments that change."""
        if self.tokens is None:
            self.refuse_without_tokens()
            return {}
        length = self.tokens[-1]
        if self.past and not self.continues:
            return {}
        self.refuse_too_long(length)
        found: dict[str, Any] = {}
        for name, value in self.own.items():
            kind = kind_of(name)
            if not isinstance(value, Tensor):
                if kind == "mask":
                    raise unknown(name, self.rows, "give a mask [batch tokens]")
                continue
            if kind is None and not self.past:
                self.refuse_unknown(name, value)
            if kind is not None and (kind in ("mask", "places", "points") or not self.past):
                found[name] = self.longer(name, kind, value, length)
        return found

    def longer(self, name: str, kind: Kind, value: Tensor, length: int) -> Tensor:
        """One argument, grown; one that has another number of tokens than the call belongs to something else."""
        count = self.rows
        if kind == "points":
            return value + count
        if kind == "mask":
            return self.longer_mask(name, value, length)
        paired = kind == "rows" or (kind == "types" and value.dim() > 2 and value.shape[-1] != length)
        axis = -2 if paired else -1
        of_texts = kind == "targets" and value.dim() < len(self.tokens or ())  # one each, however many
        if of_texts or value.dim() < -axis or value.shape[axis] != length:
            return value
        if kind == "places" and self.past:
            return value + count
        front = value.narrow(axis, 0, 1).expand(
            *value.shape[: value.dim() + axis], count, *value.shape[value.dim() + axis + 1 :]
        )
        match kind:
            case "rows":
                front = torch.zeros_like(front)
            case "targets":
                if value.is_floating_point():
                    return value
                front = torch.full_like(front, UNTRAINED)
            case "places":
                front = torch.arange(count, dtype=value.dtype, device=value.device).expand_as(front)
                value = value + count
            case "ids":
                front = torch.full_like(front, self.filler)
        return torch.cat([front, value], axis)

    def longer_mask(self, name: str, value: Tensor, length: int) -> Tensor:
        """A mask with ones in front, for as many tokens as the call and its cache are told to have."""
        told = length + max(self.past - self.rows, 0)
        if value.dim() < 2 or value.shape[-1] != told:
            return value
        if value.dim() > 2 and value.dim() != len(self.tokens or ()):
            raise unknown(name, self.rows, "give a mask [batch tokens]")
        return torch.cat([value.new_ones(*value.shape[:-1], self.rows), value], -1)

    def refuse_unknown(self, name: str, value: Tensor) -> None:
        """Raise if an argument comes with the tokens, one number for each, and nothing tells what it is."""
        if tuple(value.shape) == self.tokens:
            raise unknown(
                name, self.rows, "its name tells nothing that is known; leave it out, or name it as others do"
            )

    def refuse_too_long(self, length: int) -> None:
        """Raise if tokens would have no place in the model's table of places."""
        needed = self.past + length + (0 if self.past else self.rows)
        if self.places is None or needed <= self.places:
            return
        given = [v for name, v in self.own.items() if kind_of(name) == "places" and isinstance(v, Tensor)]
        if given and int(given[0].max()) + self.rows < self.places:
            return
        raise ProgramError(
            f"{length} tokens, {self.past or 'none'} in the cache and {self.rows} rows in front need {needed} places, and the "
            f"model has {self.places}",
            hint="shorten the text, or put fewer rows in front",
        )

    def refuse_without_tokens(self) -> None:
        """Raise if a decoder's tokens would be made of what they are trained on, as long as that is."""
        if self.part == TARGET and any(kind_of(name) == "targets" for name in self.own):
            raise ProgramError(
                f"{self.rows} rows go in front of the decoder's tokens, and this call has none of its own",
                hint="give decoder_input_ids: model.prepare_decoder_input_ids_from_labels(labels)",
            )


def longer_masks(own: Mapping[str, Any], arguments: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """Masks of an encoder's output that has the rows: one that is shorter by them is grown."""
    states = next(
        (
            first
            for name, value in arguments.items()
            if is_encoders(name) and (first := first_states(value)) is not None
        ),
        None,
    )
    if states is None:
        return {}
    return {
        name: torch.cat([value.new_ones(*value.shape[:-1], rows), value], -1)
        for name, value in own.items()
        if kind_of(name) == "mask"
        and isinstance(value, Tensor)
        and value.shape[-1] + rows == states.shape[-2]
    }


def first_states(value: Any) -> Tensor | None:
    """The states [batch tokens d] in what an encoder gave."""
    if isinstance(value, Tensor):
        return value if value.dim() == 3 else None
    held = next(iter(value.values() if isinstance(value, Mapping) else value), None) if value else None
    return held if isinstance(held, Tensor) and held.dim() == 3 else None


def length_in_cache(arguments: Mapping[str, Any]) -> int:
    """How many tokens are in the cache that a call was given; 0 where it has none.

    A cache of states that sum up all tokens so far does not tell their number: it has one, at least, or none.
    """
    for value in arguments.values():
        if callable(length := getattr(value, "get_seq_length", None)):
            try:
                return int(length())
            except ValueError:
                return int(value.has_previous_state())
    return 0


def refuse_fixed_cache(arguments: Mapping[str, Any], rows: int) -> None:
    """Raise if a call comes with a cache of a fixed length: it is made, with its masks, for the text without the rows."""
    for value in arguments.values():
        if not hasattr(value, "get_seq_length") or not getattr(value, "is_compileable", False):
            continue
        longest = getattr(value, "get_max_length", None)  # that of states which sum up all tokens has no end
        if longest is None or longest() > 0:
            raise ProgramError(
                f"{rows} rows go in front of what the model reads, and a {type(value).__name__} has room for the text alone",
                hint="take a cache that grows with the text, as generate() does unless it is told otherwise",
            )


def refuse_bare_cache(arguments: Mapping[str, Any], rows: int) -> None:
    """Raise if a call comes with what may be a cache and does not tell how many tokens are in it."""
    for name, value in arguments.items():
        single = isinstance(value, Tensor) and kind_of(name) is None and is_next_calls(name)
        if (single or any(map(is_states, leaves(value)))) and not is_encoders(name):
            raise ProgramError(
                f"{rows} rows go in front of what the model reads, and nothing tells whether they are in {name!r} already: "
                "it holds bare tensors",
                hint="give a cache that tells its length by get_seq_length(), as transformers.DynamicCache does",
            )


def leaves(value: Any) -> list[Any]:
    """What plain containers hold; of anything else, nothing."""
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if not isinstance(value, (list, tuple)):
        return []
    return [leaf for held in value for leaf in (leaves(held) or [held])]


def is_states(value: Any) -> bool:
    """Whether a value may be keys, values or states: numbers for each of several tokens of several texts."""
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() >= 3


def unknown(name: str, rows: int, hint: str) -> ProgramError:
    """What is said of an argument that cannot be grown."""
    return ProgramError(
        f"{rows} rows go in front of what the model reads, and it is not known what {name!r} is for them",
        hint=hint,
    )


def growth_of(plan: Plan, root: nn.Module) -> Growth:
    """What a plan asks of every call.

    Raises:
        MatchError: inputs that come with the same tokens would become longer by different numbers of rows.
    """
    rows = rows_by_part(plan)
    if not rows:
        return Growth({})
    paths: dict[str, tuple[str, ...]] = {}
    places: dict[str, int] = {}
    for site in plan.sites:
        if ROLES[site.role].grows:
            paths[site.part] = (*paths.get(site.part, ()), site.path)
            if count := site.sizes.get("places"):
                places[site.part] = min(count, places.get(site.part, count))
    return Growth(rows, paths, places, filler_of(root))
