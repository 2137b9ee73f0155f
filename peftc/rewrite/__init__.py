"""Plan × graph → new graph. The input graph is never changed."""

from peftc.rewrite.losses import auxiliary_loss
from peftc.rewrite.packed import bind
from peftc.rewrite.rewriter import Folded
from peftc.rewrite.rewriting import rewrite, without_adapters

__all__ = ["Folded", "auxiliary_loss", "bind", "rewrite", "without_adapters"]
