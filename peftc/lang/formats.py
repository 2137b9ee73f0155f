"""The number formats in which a `quantise` keeps a weight: their settings and, as a text, what packs and unpacks them.

Nothing here runs: `runs` is the dotted name of a class, so no torch is imported. An installed plugin adds its
own with `register_format`; a rule can only name what is registered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType

from peftc.lang.axes import Constant
from peftc.lang.operations import Setting

COMPUTE = ("input", "float32", "float16", "bfloat16")
"""In which number formats products with a quantised weight can be computed; `input` is that of what is multiplied."""


@dataclass(frozen=True)
class Format:
    """One word of the vocabulary.

    `bits` gives the bits that a number takes, with all that is kept beside the numbers, from the settings. `note` is
    what a person should know of weights that came so.
    """

    name: str
    doc: str
    settings: Mapping[str, Setting]
    bits: Callable[[Mapping[str, Constant]], float]
    runs: str
    paper: str = ""
    note: str = ""

    @property
    def call(self) -> str:
        """Its settings, as a hint."""
        return f"the settings of {self.name}: {', '.join(self.settings) or 'none'}"


FORMATS: dict[str, Format] = {}


def register_format(told: Format) -> Format:
    """Add a format to the vocabulary. Raises ValueError where the name is taken."""
    if FORMATS.get(told.name, told) != told:
        raise ValueError(f"there is a number format {told.name!r} already")
    FORMATS[told.name] = told
    return told


@dataclass(frozen=True)
class Packing:
    """How a weight is kept: a format with all of its settings, and the number format of products with it."""

    format: str
    settings: Mapping[str, Constant] = field(hash=False, default_factory=dict)
    compute: str = "input"

    @property
    def text(self) -> str:
        """The format and its settings in one line, such as `int8` or `fp4 blocksize=64 double=true`."""
        said = (f"{key}={str(value).lower()}" for key, value in self.settings.items())
        return " ".join([self.format, *said])

    @property
    def bits(self) -> float:
        """The bits that a number takes."""
        return FORMATS[self.format].bits(self.settings)

    def __str__(self) -> str:
        """For a person."""
        return self.text if self.compute == "input" else f"{self.text}, products in {self.compute}"


@lru_cache(maxsize=256)
def read_packing(text: str) -> Packing:
    """The packing of a `text`."""
    name, *said = text.split()
    return Packing(name, {key: _value(value) for key, _, value in (each.partition("=") for each in said)})


def _value(word: str) -> Constant:
    if word in ("true", "false"):
        return word == "true"
    try:
        return int(word)
    except ValueError:
        return word


def _bits_of_blocks(settings: Mapping[str, Constant]) -> float:
    """Four bits, and for each block its largest value: 32 bits, or 8 and a share of the second largest values."""
    return 4 + (8 + 32 / 256 if settings["double"] else 32) / float(settings["blocksize"])


def _bits_of_rows(_settings: Mapping[str, Constant]) -> float:
    """Eight bits; one scale a row is next to nothing."""
    return 8.0


_BLOCKS: Mapping[str, Setting] = MappingProxyType(
    {
        "blocksize": Setting(
            "number",
            "How many numbers that stand in a row, along `d_in`, share a scale.",
            default=64,
            among=(32, 64, 128, 256, 512, 1024, 2048, 4096),
        ),
        "double": Setting(
            "flag", "Whether the scales are quantised too, to 8 bits in blocks of 256.", default=True
        ),
    }
)

for _format in (
    Format(
        "nf4",
        "16 values, such that normally distributed numbers fall on each of them equally often, times the largest "
        "of the block.",
        _BLOCKS,
        _bits_of_blocks,
        "peftc.quantised.formats.Blocks",
        paper="https://arxiv.org/abs/2305.14314",
    ),
    Format(
        "fp4",
        "Numbers of 1 bit for the sign, 2 for the exponent and 1 for the fraction, times the largest of the block.",
        _BLOCKS,
        _bits_of_blocks,
        "peftc.quantised.formats.Blocks",
    ),
    Format(
        "int8",
        "Whole numbers from -127 to 127, times the largest of the row. What is multiplied by the weight is not "
        "rounded, as it is by LLM.int8() in evaluation.",
        MappingProxyType({}),
        _bits_of_rows,
        "peftc.quantised.formats.Rows",
        paper="https://arxiv.org/abs/2208.07339",
        note="what is multiplied by them is not rounded, and so no outlier is set apart",
    ),
):
    register_format(_format)
