"""The records of a job: what was asked (`Settings`) and what it takes to predict again (`Job`, saved as
job.json).

Holds values only; it opens no model and no data.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from peftc.errors import DataError

Task = Literal["classification", "causal-lm"]
Pooling = Literal["mean", "model"]
JOB_FILE = "job.json"


@dataclass(frozen=True)
class Settings:
    """One run of `peftc finetune`, as given on the command line."""

    model: Path
    data: Path
    task: Task
    rules: tuple[str, ...]
    out: Path
    saved: Mapping[str, Path] = field(default_factory=dict, hash=False)
    eval_data: Path | None = None
    split_by: str | None = None
    eval_fraction: float = 0.2
    text_column: str = "text"
    label_column: str = "label"
    pooling: Pooling = "mean"
    max_length: int = 128
    block_size: int = 128
    max_rows: int | None = None
    epochs: float = 3.0
    max_steps: int | None = None
    batch_size: int = 32
    accumulate: int = 1
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    optimizer: str = "adamw"
    warmup: float = 0.0
    seed: int = 0
    gradient_checkpointing: bool = False
    evaluate_every: int | None = None
    keep: Literal["last", "best"] = "last"
    baselines: bool = False
    cpu: bool = False
    resume: bool = False
    overwrite: bool = False


class Job(BaseModel):
    """job.json: everything needed to predict again, in another process or on another day."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    model: str
    task: Task
    rules: tuple[str, ...]
    pooling: Pooling
    labels: tuple[str, ...]
    text_column: str
    label_column: str
    max_length: int
    block_size: int
    batch_size: int
    seed: int
    optimizer: str = "adamw"
    data: str
    data_sha256: str
    eval_data: str | None
    split_by: str | None
    eval_fraction: float
    max_rows: int | None
    versions: dict[str, str]
    saved: dict[
        str, str
    ] = {}  # adapters that rules read: name → digest of its tensors, wherever its folder lies


# A run goes on only with the job it began: these may differ, the rest may not.
FREE_ON_RESUME = frozenset({"model", "data", "eval_data", "versions"})


def job_of(settings: Settings, labels: tuple[str, ...]) -> Job:
    """The job that these settings are, with its data's hash and the versions in use."""
    from peftc.store import digest_of_saved  # with torch, which reading settings does not need

    return Job(
        model=str(settings.model.resolve()),
        task=settings.task,
        rules=settings.rules,
        pooling=settings.pooling,
        labels=labels,
        text_column=settings.text_column,
        label_column=settings.label_column,
        max_length=settings.max_length,
        block_size=settings.block_size,
        batch_size=settings.batch_size,
        seed=settings.seed,
        optimizer=settings.optimizer,
        data=str(settings.data.resolve()),
        data_sha256=hashlib.sha256(settings.data.read_bytes()).hexdigest(),
        eval_data=None if settings.eval_data is None else str(settings.eval_data.resolve()),
        split_by=settings.split_by,
        eval_fraction=settings.eval_fraction,
        max_rows=settings.max_rows,
        versions=versions(),
        saved={name: digest_of_saved(folder) for name, folder in settings.saved.items()},
    )


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in ("peftc", "torch", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a checkout that was never installed
            found[name] = "not installed"
    return found


def difference(before: Job, now: Job) -> str | None:
    """The first field in which a resumed job differs from the one that began, in words; None where none."""
    for name in Job.model_fields:
        old, new = getattr(before, name), getattr(now, name)
        if name not in FREE_ON_RESUME and old != new:
            return f"{name} was {old!r} and is now {new!r}"
    return None


def write_job(job: Job, folder: Path) -> None:
    """Writes job.json into the folder, whole or not at all."""
    temporary = folder / f".{JOB_FILE}"
    temporary.write_text(job.model_dump_json(indent=2) + "\n", encoding="utf-8")
    temporary.replace(folder / JOB_FILE)


def read_job(folder: Path) -> Job:
    """The folder's job.

    Raises DataError where the folder, the file or a field of it is not there or not right.
    """
    path = folder / JOB_FILE
    if not folder.is_dir():
        raise DataError("no such folder", where=str(folder))
    if not path.is_file():
        inside = ", ".join(sorted(entry.name for entry in folder.iterdir())) or "nothing"
        raise DataError(
            f"has no {JOB_FILE}, so it is not an output folder of peftc finetune",
            where=str(folder),
            detail=(f"it holds: {inside}",),
        )
    try:
        return Job.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"is not JSON: {error}", where=str(path)) from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise DataError(f"field {field!r}: {first['msg']}", where=str(path)) from error
