"""The output folder: all of it or nothing of it.

A run works in a sibling, `<out>.unfinished`, which becomes `<out>` by one rename when everything is there.
Never removes a file that peftc did not write.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from peftc.errors import OutputExistsError

OWN_ENTRIES = frozenset({"adapter", "checkpoints", "job.json", "loss.png", "metrics.json", "predictions.csv"})


@dataclass(frozen=True)
class Output:
    """Where a run writes. `work` holds the run until it is complete; `out` is what the user named."""

    out: Path
    work: Path

    @property
    def checkpoints(self) -> Path:
        """Where Trainer keeps its checkpoints."""
        return self.work / "checkpoints"


def is_main_process() -> bool:
    """Whether this process writes: under a launcher only the first one does."""
    return os.environ.get("RANK", "0") == "0"


def process_count() -> int:
    """How many processes a launcher started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def open_output(out: Path, *, resume: bool, overwrite: bool) -> Output:
    """The output of a new or resumed run.

    Raises OutputExistsError where something is there and neither was said, or both were.
    """
    if resume and overwrite:
        raise OutputExistsError(
            "--resume keeps what is there and --overwrite replaces it: give one of them", where=str(out)
        )
    output = Output(out, out.with_name(out.name + ".unfinished"))
    if not is_main_process():
        return output
    if out.exists() and not out.is_dir():
        raise OutputExistsError("is a file; the output is a folder", where=str(out))
    if not (resume or overwrite):
        if out.exists() and any(out.iterdir()):
            raise OutputExistsError(
                "the output folder is not empty",
                where=str(out),
                detail=(f"it holds: {', '.join(sorted(entry.name for entry in out.iterdir())[:8])}",),
                hint="--overwrite replaces the results in it, --resume goes on from its last checkpoint",
            )
        if output.work.exists():
            raise OutputExistsError(
                "an earlier run into this folder was interrupted",
                where=str(output.work),
                hint="--resume goes on from its last checkpoint, --overwrite starts anew",
            )
    if overwrite and not resume and output.work.exists():
        shutil.rmtree(output.work)
    output.work.mkdir(parents=True, exist_ok=True)
    return output


def abandon(output: Output) -> None:
    """Takes away the working folder of a run that failed before its first checkpoint."""
    if is_main_process() and output.work.is_dir() and last_checkpoint(output.checkpoints) is None:
        shutil.rmtree(output.work)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint: Trainer writes its state last."""
    if not folder.is_dir():
        return None
    complete = [entry for entry in folder.glob("checkpoint-*") if (entry / "trainer_state.json").is_file()]
    return max(complete, key=lambda entry: int(entry.name.rpartition("-")[2]), default=None)


def resume_from(output: Output) -> Path | None:
    """The checkpoint to go on from: of the interrupted run, else of the finished one, else None."""
    return last_checkpoint(output.checkpoints) or last_checkpoint(output.out / "checkpoints")


def publish(output: Output) -> None:
    """Makes the working folder the output folder.

    What an earlier output held that peftc did not write is kept.
    """
    if not output.out.exists():
        output.work.rename(output.out)
        return
    replaced = output.out.with_name(output.out.name + ".replaced")
    if replaced.exists():
        shutil.rmtree(replaced)
    output.out.rename(replaced)
    output.work.rename(output.out)
    for entry in replaced.iterdir():
        # A finished run that was resumed and had nothing left to do made no checkpoint: keep the one it came
        # from.
        kept = entry.name not in OWN_ENTRIES or (
            entry.name == "checkpoints" and not (output.out / entry.name).exists()
        )
        if kept:
            entry.rename(output.out / entry.name)
    shutil.rmtree(replaced)
