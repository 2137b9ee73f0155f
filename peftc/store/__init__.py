"""Adapters on disk: a folder with tensors and all it takes to put them in again. Needs no rule library."""

from peftc.store.loading import load_adapter, load_weights
from peftc.store.saving import save
from peftc.store.stored import StoredModule

__all__ = ["StoredModule", "load_adapter", "load_weights", "save"]
