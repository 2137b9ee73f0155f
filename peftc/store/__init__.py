"""Adapters on disk: a folder with tensors and all it takes to put them in again. Needs no rule library."""

from peftc.store.loading import load_adapter, load_weights
from peftc.store.saved import SavedAdapter, digest_of_saved, read_saved
from peftc.store.saving import save
from peftc.store.stored import StoredModule

__all__ = [
    "SavedAdapter",
    "StoredModule",
    "digest_of_saved",
    "load_adapter",
    "load_weights",
    "read_saved",
    "save",
]
