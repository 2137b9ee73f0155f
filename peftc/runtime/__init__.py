"""The compiled module: programs by call signature, adapters on and off, and names that PEFT users know."""

from peftc.runtime.build import build, twin
from peftc.runtime.compilation import Look, carry_out, look
from peftc.runtime.compiled import CompiledModule

__all__ = ["CompiledModule", "Look", "build", "carry_out", "look", "twin"]
