"""Writes an adapter's folder, such that nobody ever sees half of one. Changes nothing of the module."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from peftc.errors import OutputExistsError, StoreError
from peftc.match.plan import Plan
from peftc.store.record import FORMAT, RECORD_FILE, TENSOR_FILE, record_of, write_record

OWN_FILES = (TENSOR_FILE, RECORD_FILE)  # the record last: it vouches for the tensors


def save(compiled: nn.Module, folder: Path, *, overwrite: bool) -> None:
    """Write the adapter of a compiled module.

    Everything is written beside the folder first and then renamed. A folder that holds an adapter and nothing
    else is replaced as a whole. Where it holds other files they stay, and ours are replaced one by one: a
    process that ends between the two leaves a pair that does not match, which loading refuses.

    Raises:
        OutputExistsError: the folder holds something already, and not `overwrite`.
    """
    folder = folder.resolve()
    if folder.exists() and not folder.is_dir():
        raise OutputExistsError("is a file", where=str(folder), hint="an adapter is saved to a folder")
    there = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    if there and not overwrite:
        held = ", ".join(sorted(there)[:4])
        hint = "overwrite=True replaces it"
        raise OutputExistsError(f"holds {held} already", where=str(folder), hint=hint)
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".writing", dir=folder.parent))
    try:
        work.chmod(0o777 & ~current_umask())  # temporary folders are for their owner alone
        write(compiled, work)
        if there - set(OWN_FILES):
            for name in OWN_FILES:
                (work / name).replace(folder / name)
            sync(folder)
        else:
            put_in_place(work, folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def write(compiled: nn.Module, folder: Path) -> None:
    """Write both files and make sure that the disk has them."""
    plan: Plan = compiled.peftc_plan  # type: ignore[assignment]
    tensors = {
        path: held.detach().cpu().contiguous() for path, held in stored_tensors(compiled, plan).items()
    }
    missing = [path for path, tensor in tensors.items() if tensor.is_meta]
    if missing:
        raise StoreError(f"{missing[0]} has no values: it is on the meta device")
    about = {"format": "pt", "peftc_format": str(FORMAT), "peftc_plan": plan.digest}
    save_file(tensors, folder / TENSOR_FILE, metadata=about)
    record = record_of(compiled, plan, file_digest(folder / TENSOR_FILE))
    (folder / RECORD_FILE).write_text(write_record(record), encoding="utf-8")
    for name in OWN_FILES:
        (folder / name).chmod(0o666 & ~current_umask())
        sync(folder / name)
    sync(folder)


def stored_tensors(compiled: nn.Module, plan: Plan) -> dict[str, Tensor]:
    """Every parameter that a plan adds or trains, by path; a tied one by the first of its paths."""
    found: dict[str, Tensor] = {}
    taken: set[int] = set()
    for path in (*(parameter.path for parameter in plan.new_parameters), *plan.trained):
        parameter = compiled.get_parameter(path)
        if id(parameter) not in taken:
            taken.add(id(parameter))
            found[path] = parameter
    return found


def put_in_place(work: Path, folder: Path) -> None:
    """Rename the new folder to its name. An old one is moved aside, and back should the renaming fail."""
    if not folder.exists() or not any(folder.iterdir()):
        work.replace(folder)
        return
    aside = work.with_suffix(".replaced")
    folder.replace(aside)
    try:
        work.replace(folder)
    except BaseException:
        aside.replace(folder)
        raise
    shutil.rmtree(aside)


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Wait until the disk has a file, or the names in a folder."""
    if path.is_dir() and os.name == "nt":
        return  # folders cannot be opened there
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def current_umask() -> int:
    """The permissions that new files of this process lack."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
