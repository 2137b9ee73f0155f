"""Graph → module hierarchy: one generated forward for each kind of block, and one for what lies around them."""

from peftc.emit.emission import Emitted, emit
from peftc.emit.templates import Templates

__all__ = ["Emitted", "Templates", "emit"]
