"""The methods of a compiled module that write and read adapters. Nothing but the way to those functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peftc.runtime import CompiledModule


class StoredModule(CompiledModule):
    """A compiled module that can be saved and resumed."""

    def save_pretrained(self, save_directory: str | Path, *, overwrite: bool = False, **_: Any) -> None:
        """Write the adapter, and only the adapter, to a folder.

        Other files of the folder stay as they are.

        Raises:
            OutputExistsError: the folder holds something already, and not `overwrite`.
        """
        from peftc.store.saving import save

        save(self, Path(save_directory), overwrite=overwrite)

    def load_adapter_weights(self, folder: str | Path) -> None:
        """Read the tensors of an adapter that has this module's plan into it.

        Raises:
            ForeignAdapterError, CorruptAdapterError: the folder is not of this plan, or damaged; then nothing
                has changed.
        """
        from peftc.store.loading import load_weights

        load_weights(self, Path(folder))
