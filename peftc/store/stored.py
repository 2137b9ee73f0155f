"""The methods of a compiled module that write and read adapters. Nothing but the way to those functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peftc.runtime import CompiledModule


class StoredModule(CompiledModule):
    """A compiled module that can be saved and resumed."""

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        overwrite: bool = False,
        is_main_process: bool | None = None,
        **_: Any,
    ) -> None:
        """Write the adapter, and only the adapter, to a folder.

        Other files of the folder stay as they are.

        Args:
            save_directory: the folder; made if need be.
            overwrite: whether an adapter that is there already may be replaced.
            is_main_process: given by transformers' Trainer, whose checkpoints are its own to replace. A process
                that is not the main one writes nothing.

        Raises:
            OutputExistsError: the folder holds something already, and not `overwrite`.
        """
        from peftc.store.saving import save

        if is_main_process is False:
            return
        save(self, Path(save_directory), overwrite=overwrite or is_main_process is not None)

    def load_adapter_weights(self, folder: str | Path) -> None:
        """Read the tensors of an adapter that has this module's plan into it.

        Raises:
            ForeignAdapterError, CorruptAdapterError: the folder is not of this plan, or damaged; then nothing
                has changed.
        """
        from peftc.store.loading import load_weights

        load_weights(self, Path(folder))
