"""Tiny random models of every architecture that transformers has, made from its config classes.

Nothing here is written for an architecture, but a short table of what default configs leave out: a config is shrunk
by what its attributes are called, a model is the class that the library's own tables name for it, and a call is made
by what its forward takes. Trains nothing.
"""

from tests.zoo.calls import inputs
from tests.zoo.configs import shrunk
from tests.zoo.entries import THE_57, Entry, entries, entry, table

__all__ = ["THE_57", "Entry", "entries", "entry", "inputs", "shrunk", "table"]
