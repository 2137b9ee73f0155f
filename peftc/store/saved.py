"""Adapters on disk that a rule reads parameters from: what of each it can read. Makes no module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from peftc.errors import SavedAdapterError
from peftc.lang import SavedRule
from peftc.runtime import SavedTensors
from peftc.store.loading import read_tensors
from peftc.store.record import RECORD_FILE, Record, read_record

INNER = "adapter"  # where `peftc finetune` puts the adapter in its output


@dataclass(frozen=True)
class SavedAdapter:
    """One adapter.

    Attributes:
        rule: what the user calls it, and its rule.
        tensors: (role, site id, name of a parameter) → tensor, on the CPU.
    """

    rule: SavedRule
    tensors: SavedTensors


def read_saved(given: Mapping[str, str | Path]) -> tuple[SavedAdapter, ...]:
    """Adapters by what the user calls them: folders of `save_pretrained`, or outputs of `peftc finetune`.

    A head that was trained with one is left out: whoever reads adapters trains a head of its own.

    Raises:
        CorruptAdapterError: a folder is damaged.
        SavedAdapterError: a folder holds no rule, or several, that could be read.
    """
    return tuple(read_one(name, Path(folder)) for name, folder in given.items())


def read_one(name: str, folder: Path) -> SavedAdapter:
    """One adapter. Raises as `read_saved`."""
    if not name:
        raise SavedAdapterError("a saved adapter needs a name", where=str(folder))
    folder = within(folder)
    record = read_record(folder)
    roles: dict[str, set[str]] = {}
    for application in record.applications:
        roles.setdefault(application.rule, set()).add(application.role)
    labels = [label for label, held in roles.items() if held != {"head"}]
    if len(labels) != 1:
        found = f"holds {' and '.join(labels)}" if labels else "holds a head alone"
        raise SavedAdapterError(f"{name!r} {found}: an adapter of one rule is read", where=str(folder))
    bound = next(bound for bound in record.bounds if bound.label == labels[0])
    tensors = tensors_of(record, labels[0], read_tensors(folder, record))
    return SavedAdapter(SavedRule(name, bound), tensors)


def digest_of_saved(folder: str | Path) -> str:
    """The digest of the tensors in such a folder. Raises CorruptAdapterError."""
    return read_record(within(Path(folder))).tensors


def within(folder: Path) -> Path:
    """The adapter's folder: this one, or the one inside an output folder of `peftc finetune`."""
    is_output = not (folder / RECORD_FILE).is_file() and (folder / INNER / RECORD_FILE).is_file()
    return folder / INNER if is_output else folder


def tensors_of(
    record: Record, label: str, tensors: Mapping[str, Tensor]
) -> dict[tuple[str, str, str], Tensor]:
    """The tensors of one rule. One that all sites share is stored once, and found at each of them."""
    bound = next(bound for bound in record.bounds if bound.label == label)
    found: dict[tuple[str, str, str], Tensor] = {}
    common: dict[tuple[int, str], Tensor] = {}
    for application in record.applications:
        if application.rule != label:
            continue
        section = bound.rule.sections[application.section]
        for path in application.parameters:
            name = path.rpartition(".")[2]
            key = (application.section, name)
            if path in tensors and name in section.parameters and section.parameters[name].share == "model":
                common[key] = tensors[path]
            tensor = tensors.get(path, common.get(key))
            if tensor is not None:
                found[application.role, application.site, name] = tensor
    return found
