"""Reads an adapter's folder into a model, whole or not at all. The rules are those in the folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from peftc.errors import CaptureError, CorruptAdapterError, ForeignAdapterError, MatchError
from peftc.match.plan import Plan
from peftc.runtime import CompiledModule, carry_out, look, pack, twin
from peftc.store.record import FORMAT, RECORD_FILE, TENSOR_FILE, Record, dtype_name, read_record
from peftc.store.saving import file_digest, stored_tensors
from peftc.store.stored import StoredModule


def load_adapter(
    model: nn.Module, folder: Path, example_inputs: Mapping[str, Any] | None, *, trainable: bool
) -> nn.Module:
    """Compile a model with the rules and tensors of a folder. Unless `trainable`, no parameter of it trains.

    Raises:
        CorruptAdapterError: the folder is damaged. ForeignAdapterError: it belongs to another model.
    """
    if isinstance(model, CompiledModule):
        raise CaptureError(
            f"{type(model).__name__} is compiled already",
            hint="an adapter is loaded into the plain model; rules that stood on another adapter bring it along",
        )
    record = read_record(folder)
    tensors = read_tensors(folder, record)
    copied = twin(model)
    try:
        # All shapes are compared with the stored ones below, so there is nothing for a budget to refuse.
        looked = look(copied, record.bounds, example_inputs, budget=2**63)
    except MatchError as error:
        refuse_missing_sites(record, copied, folder)
        raise ForeignAdapterError(
            f"made for a {record.made_for}, does not fit this {type(model).__name__}: {error.message}",
            where=str(folder),
            detail=error.detail,
            hint=error.hint,
        ) from error
    compare(record, looked.plan, folder, type(model).__name__)
    pack(copied, looked.plan)
    compiled = carry_out(looked, copied, StoredModule)
    put_in(tensors, stored_tensors(compiled, looked.plan), folder)
    if not trainable:
        compiled.requires_grad_(False)
    return compiled


def refuse_missing_sites(record: Record, model: nn.Module, folder: Path) -> None:
    """Raise ForeignAdapterError naming the first stored site whose module the model lacks, if there is one."""
    modules = {name for name, _ in model.named_modules(remove_duplicate=False)}
    paths = modules | {name for name, _ in model.named_parameters(remove_duplicate=False)}
    sites = dict.fromkeys(each.content["site"] for each in record.applications)
    missing = [site for site in sites if site.rpartition(":")[0] not in paths]
    if missing:
        raise ForeignAdapterError(
            f"made for a {record.made_for}; this {type(model).__name__} has no {missing[0].rpartition(':')[0]}",
            where=str(folder),
            hint=f"and lacks {len(missing) - 1} more of its {len(sites)} sites" if len(missing) > 1 else None,
        )


def load_weights(compiled: nn.Module, folder: Path) -> None:
    """Read the tensors of a folder into a compiled module that has its plan.

    Raises:
        CorruptAdapterError, ForeignAdapterError: as `load_adapter`; nothing has changed then.
    """
    plan: Plan = compiled.peftc_plan  # type: ignore[assignment]
    record = read_record(folder)
    compare(record, plan, folder, type(compiled).__name__.removeprefix("Compiled"))
    put_in(read_tensors(folder, record), stored_tensors(compiled, plan), folder)


def compare(record: Record, plan: Plan, folder: Path, model_name: str) -> None:
    """Raise ForeignAdapterError unless a plan does what the stored one did; names the first site."""
    stored = {key_of(each.content): each.content for each in record.applications}
    here = {key_of(each): each for each in plan.content["applications"]}
    differing = [key for key in {**stored, **here} if stored.get(key) != here.get(key)]
    if differing:
        first, others = differing[0], len(differing) - 1
        raise ForeignAdapterError(
            f"made for a {record.made_for}; this {model_name} differs at {first[-1]}, where {first[0]} acts",
            where=str(folder),
            detail=(f"stored:     {said(stored.get(first))}", f"this model: {said(here.get(first))}"),
            hint=f"and at {others} other{'s' if others > 1 else ''}" if others else None,
        )
    if record.plan != plan.digest:
        saved = ", ".join(bound.text or bound.label for bound in record.bounds)
        present = ", ".join(bound.text or bound.label for bound in plan.rules)
        raise ForeignAdapterError(
            "the same sites, but other rules, options or another order",
            where=str(folder),
            detail=(f"stored:     {saved}", f"this model: {present}"),
        )


def key_of(content: Mapping[str, Any]) -> tuple[str, int, str, str]:
    """What tells applications apart."""
    return content["rule"], content["section"], content["role"], content["site"]


def said(content: Mapping[str, Any] | None) -> str:
    """An application's sizes and shapes in one line."""
    if content is None:
        return "no such site"
    sizes = [f"{axis} {size}" for axis, size in content["sizes"].items()]
    shapes = [f"{path.rpartition('.')[2]} {shape}" for path, shape in content["parameters"].items()]
    trains = [f"trains {path} ({count:,})" for path, count in content["trains"].items()]
    return ", ".join([*sizes, *shapes, *trains])


def read_tensors(folder: Path, record: Record) -> dict[str, Tensor]:
    """The tensors of a folder, on the CPU.

    Raises:
        CorruptAdapterError: the file is missing or damaged, or not the one that the record vouches for.
    """
    path = folder / TENSOR_FILE
    if not path.is_file():
        raise CorruptAdapterError(f"the folder has no {TENSOR_FILE}", where=str(folder))
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise CorruptAdapterError(f"cannot be read: {error}", where=str(path)) from error
    if about.get("peftc_format") != str(FORMAT) or about.get("peftc_plan") != record.plan:
        raise CorruptAdapterError(f"not the file that {RECORD_FILE} belongs to", where=str(path))
    if file_digest(path) != record.tensors:
        raise CorruptAdapterError(f"its content is not what {RECORD_FILE} says was saved", where=str(path))
    known = dict(record.parameters)
    for name, tensor in tensors.items():
        expected = known.get(name)
        if expected is None:
            raise CorruptAdapterError(f"{name} is a tensor that {RECORD_FILE} does not name", where=str(path))
        if (list(tensor.shape), dtype_name(tensor.dtype)) != (expected.shape, expected.dtype):
            found = f"{dtype_name(tensor.dtype)} {list(tensor.shape)}"
            message = f"{name} is {found}, not {expected.dtype} {expected.shape} as {RECORD_FILE} says"
            raise CorruptAdapterError(message, where=str(path))
    return tensors


def put_in(tensors: Mapping[str, Tensor], parameters: Mapping[str, Tensor], folder: Path) -> None:
    """Copy tensors into parameters of the same names: all of them, or none."""
    if tensors.keys() != parameters.keys():
        name = min(tensors.keys() ^ parameters.keys())
        problem = "lacks" if name in parameters else "has in excess"
        raise CorruptAdapterError(f"{problem} the tensor {name}", where=str(folder / TENSOR_FILE))
    ready: list[tuple[Tensor, Tensor]] = []
    for name, parameter in parameters.items():
        if tensors[name].shape != parameter.shape:
            sizes = f"{list(tensors[name].shape)}, in this model {list(parameter.shape)}"
            raise ForeignAdapterError(f"{name} is {sizes}", where=str(folder))
        ready.append((parameter, tensors[name].to(device=parameter.device, dtype=parameter.dtype)))
    with torch.no_grad():
        for parameter, tensor in ready:
            parameter.copy_(tensor)
