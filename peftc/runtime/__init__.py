"""The compiled module: programs by call signature, adapters on and off, and the names that PEFT users know."""

from peftc.runtime.build import build
from peftc.runtime.compiled import CompiledModule

__all__ = ["CompiledModule", "build"]
