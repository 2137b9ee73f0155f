"""The compiled module: programs by call signature, adapters on and off, and names that PEFT users know."""

from peftc.runtime.build import build, twin
from peftc.runtime.compilation import Look, capture_example, carry_out, look, start_from
from peftc.runtime.compiled import CompiledModule
from peftc.runtime.stacked import SavedTensors

__all__ = [
    "CompiledModule",
    "Look",
    "SavedTensors",
    "build",
    "capture_example",
    "carry_out",
    "look",
    "start_from",
    "twin",
]
