"""The compiled module: programs by call signature, adapters on and off, and names that PEFT users know."""

from peftc.runtime.build import build
from peftc.runtime.carrying import carried, put_over
from peftc.runtime.compilation import Look, capture_example, carry_out, look, start_from
from peftc.runtime.compiled import CompiledModule
from peftc.runtime.groups import param_groups
from peftc.runtime.stacked import SavedTensors
from peftc.runtime.twin import pack, twin

__all__ = [
    "CompiledModule",
    "Look",
    "SavedTensors",
    "build",
    "capture_example",
    "carried",
    "carry_out",
    "look",
    "pack",
    "param_groups",
    "put_over",
    "start_from",
    "twin",
]
