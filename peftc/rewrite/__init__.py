"""Plan × graph → new graph. The input graph is never changed."""

from peftc.rewrite.rewriting import rewrite, without_adapters

__all__ = ["rewrite", "without_adapters"]
