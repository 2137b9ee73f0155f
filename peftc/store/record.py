"""`adapter.json`: what an adapter's folder says about its tensors. Reads and writes text; makes no tensor."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from torch import nn

from peftc import __version__
from peftc.errors import CorruptAdapterError, PeftcError, StoreError
from peftc.lang import Bound, flatten
from peftc.match.plan import Application, Plan, digest_of, rule_content

FORMAT = 1
RECORD_FILE = "adapter.json"
TENSOR_FILE = "adapter.safetensors"
LARGEST_RECORD = 64 * 2**20

Text = Annotated[str, StringConstraints(max_length=2000)]
Digest = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
Size = Annotated[int, Field(ge=0, lt=2**48)]


class Data(BaseModel):
    """Part of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class StoredParameter(Data):
    """Shape and dtype of one tensor."""

    shape: Annotated[list[Size], Field(max_length=8)]
    dtype: Text

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


class StoredApplication(Data):
    """One section of a rule at one site: new parameters, and parameters of the model that train, by path."""

    rule: Text
    section: Size
    role: Text
    site: Text
    sizes: dict[Text, Size]
    parameters: dict[Text, StoredParameter]
    trains: dict[Text, StoredParameter]
    options: dict[Text, bool | int | float | Text] = {}

    @property
    def content(self) -> dict[str, Any]:
        """As a plan's content has it."""
        said = self.model_dump(include={"rule", "section", "role", "site", "sizes"})
        said["parameters"] = {path: list(parameter.shape) for path, parameter in self.parameters.items()}
        said["trains"] = {path: parameter.count for path, parameter in self.trains.items()}
        return said | ({"options": dict(self.options)} if self.options else {})


class Record(Data):
    """The whole file.

    Attributes:
        plan: digest of the plan.
        tensors: SHA-256 of the tensor file.
        made_for: class of the model, for a person to read.
    """

    format: Literal[1]
    peftc: Text
    torch: Text
    transformers: Text
    made_for: Text
    plan: Digest
    tensors: Digest
    rules: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=1000)]
    applications: Annotated[list[StoredApplication], Field(max_length=1_000_000)]

    @cached_property
    def bounds(self) -> tuple[Bound, ...]:
        """The stored rules, proved anew."""
        return tuple(Bound.from_flat(flat) for flat in self.rules)

    @property
    def content(self) -> dict[str, Any]:
        """As a plan's content has it."""
        return {
            "rules": [rule_content(bound) for bound in self.bounds],
            "applications": [each.content for each in self.applications],
        }

    @property
    def parameters(self) -> Iterator[tuple[str, StoredParameter]]:
        """Path and kind of every parameter that some application adds or trains."""
        for application in self.applications:
            yield from application.parameters.items()
            yield from application.trains.items()


def record_of(compiled: nn.Module, plan: Plan, tensors: str) -> Record:
    """The record of a compiled module whose tensor file has the digest `tensors`."""

    def stored(application: Application) -> StoredApplication:
        return StoredApplication(
            rule=application.rule,
            section=application.section,
            role=application.site.role,
            site=application.site.id,
            sizes=dict(application.site.sizes),
            parameters={each.path: kind(compiled, each.path) for each in application.parameters},
            trains={path: kind(compiled, path) for path in application.trains.values()},
            options=dict(application.options),
        )

    return Record(
        format=1,
        peftc=__version__,
        torch=installed("torch"),
        transformers=installed("transformers"),
        made_for=type(compiled).__name__.removeprefix("Compiled"),
        plan=plan.digest,
        tensors=tensors,
        rules=[flatten(bound) for bound in plan.rules],
        applications=[stored(application) for application in plan.applications],
    )


def kind(module: nn.Module, path: str) -> StoredParameter:
    """Shape and dtype of a module's parameter."""
    parameter = module.get_parameter(path)
    return StoredParameter(shape=list(parameter.shape), dtype=dtype_name(parameter.dtype))


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` of `torch.float32`."""
    return str(dtype).removeprefix("torch.")


def installed(package: str) -> str:
    """The version of an installed package; "" where there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def write_record(record: Record) -> str:
    """The text of the file."""
    return json.dumps(record.model_dump(), indent=1) + "\n"


def read_record(folder: Path) -> Record:
    """Read and prove the record of a folder.

    Raises:
        CorruptAdapterError: it is missing, cannot be read, or contradicts itself.
        StoreError: a later version of peftc wrote it.
    """
    path = folder / RECORD_FILE
    if not path.is_file():
        there = "no such folder" if not folder.is_dir() else f"the folder has no {RECORD_FILE}"
        raise CorruptAdapterError(there, where=str(folder), hint="save_pretrained writes such folders")
    if path.stat().st_size > LARGEST_RECORD:
        raise CorruptAdapterError(f"larger than {LARGEST_RECORD >> 20} MiB", where=str(path))
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CorruptAdapterError(f"not JSON: {error}", where=str(path)) from error
    refuse_later_format(data, path)
    try:
        record = Record.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise CorruptAdapterError(f"{place}: {first['msg']}", where=str(path)) from error
    try:
        content = record.content
    except PeftcError as error:
        raise CorruptAdapterError(f"a stored rule is wrong: {error.message}", where=str(path)) from error
    if digest_of(content) != record.plan:
        raise CorruptAdapterError("its rules and sites are not those that were saved", where=str(path))
    return record


def refuse_later_format(data: object, path: Path) -> None:
    """Raise for a folder of a later version of peftc."""
    found = data.get("format") if isinstance(data, Mapping) else None
    if isinstance(found, int) and found > FORMAT:
        raise StoreError(
            f"written in format {found} by peftc {data.get('peftc') if isinstance(data, Mapping) else ''}",
            where=str(path),
            hint=f"this peftc reads format {FORMAT}; install a later one",
        )
