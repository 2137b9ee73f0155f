"""Looks at plans and compiled modules: text, tables and graphs for a person to read. Changes nothing."""

from peftc.inspect.difference import Diff, Inserted, diff
from peftc.inspect.explanation import Explanation, explain
from peftc.inspect.whole import graph

__all__ = ["Diff", "Explanation", "Inserted", "diff", "explain", "graph"]
