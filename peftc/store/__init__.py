"""Adapters on disk: one folder with the tensors and with all it takes to put them in again. Reads no library of rules."""

from peftc.store.loading import load_adapter, load_weights
from peftc.store.saving import save
from peftc.store.stored import StoredModule

__all__ = ["StoredModule", "load_adapter", "load_weights", "save"]
