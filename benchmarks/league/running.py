"""One run of the league in a process of its own: trains on every review, scores on movies never seen, measures.

What is trained, read and scored is `peftc.finetune`'s; this adds the memory that training takes, the adapter's size
and which rows were right. Prints the record as JSON.

    python -m benchmarks.league.running '{"name": …, "rules": […], …}'
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.league.entrants import Entrant, Setting

STATUS = Path("/proc/self/status")


def run(entrant: Entrant, seed: int, setting: Setting, data: Path, model: Path) -> dict[str, Any]:
    """The record of one method and seed. `data` holds train.csv and heldout.csv."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        saved: dict[str, Path] = {}
        if entrant.first is not None and entrant.first_rate is not None:
            for half, rows in enumerate(halves(data / "train.csv", folder)):
                out, rate = folder / f"first-{half}", entrant.first_rate
                figures = trained((entrant.first,), seed, setting, rows, None, model, out, rate, {})
                saved[f"half{half + 1}"] = figures["adapter"]
        record = trained(
            entrant.rules,
            seed,
            setting,
            data / "train.csv",
            data / "heldout.csv",
            model,
            folder / "run",
            entrant.learning_rate,
            saved,
        )
    adapter = record.pop("adapter")
    assert isinstance(adapter, Path)
    return {
        "method": entrant.name,
        "rules": entrant.rules,
        "digest": entrant.digest,
        "seed": seed,
        "learning_rate": entrant.learning_rate,
        **record,
    }


def trained(
    rules: Sequence[str],
    seed: int,
    setting: Setting,
    training: Path,
    evaluation: Path | None,
    model: Path,
    out: Path,
    learning_rate: float,
    saved: Mapping[str, Path],
) -> dict[str, Any]:
    """Trains as `peftc finetune` does; the figures, and the adapter's folder under `adapter`."""
    import torch
    from rich.console import Console
    from transformers import set_seed

    from peftc import api
    from peftc.finetune.data import encode, load_data
    from peftc.finetune.job import Settings
    from peftc.finetune.models import example_inputs, load_for
    from peftc.finetune.output import open_output
    from peftc.finetune.run import first_batch, make_trainer
    from peftc.finetune.trainer import ADAPTER_FOLDER

    settings = Settings(
        model=model,
        data=training,
        eval_data=evaluation,
        eval_fraction=0.0,
        task="classification",
        rules=tuple(rules),
        out=out,
        saved=saved,
        max_length=setting.max_length,
        max_rows=setting.rows,
        epochs=setting.epochs,
        batch_size=setting.batch_size,
        learning_rate=learning_rate,
        seed=seed,
        cpu=True,
    )
    read = load_data(settings)
    set_seed(seed)
    loaded = load_for(settings.task, model, settings.pooling, len(read.labels))
    encoded = encode(settings, read, loaded.tokenizer, loaded.input_names)
    loaded.model.train()
    set_seed(seed)
    compiled: Any = api.compile(
        loaded.model,
        list(rules),
        example_inputs(loaded, settings.task),
        saved=saved,
        data=first_batch(settings, encoded, loaded),
    )
    counted = sum(each.numel() for each in compiled.parameters() if each.requires_grad)
    record: dict[str, Any] = {"trainable": counted, "total": compiled.peftc_plan.total_count}
    loaded = replace(loaded, model=compiled)  # the plain one goes: some rules keep its weights in fewer bits
    output = open_output(out, resume=False, overwrite=True)
    quiet = Console(file=sys.stderr, quiet=True)
    trainer = make_trainer(settings, compiled, loaded, replace(encoded, evaluation=None), output, quiet)
    before = forget_peak()
    started, used = time.perf_counter(), time.process_time()
    summary = trainer.train()
    record |= {
        "steps": trainer.state.global_step,
        "loss": summary.training_loss,
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(time.process_time() - used, 1),
        "memory_mb": {"before": before, "peak": memory("VmHWM")},
    }
    if compiled.can_shrink():
        compiled = compiled.shrink()
        record["after_shrinking"] = compiled.get_nb_trainable_parameters()[0]
    record["adapter"] = out / ADAPTER_FOLDER
    compiled.save_pretrained(record["adapter"], overwrite=True)
    record["adapter_bytes"] = sum(
        each.stat().st_size for each in record["adapter"].rglob("*") if each.is_file()
    )
    if encoded.evaluation is not None:
        record |= scores(compiled, encoded.evaluation, loaded.tokenizer, setting.batch_size)
    assert torch.get_num_threads() >= 1
    return record


def scores(compiled: Any, evaluation: Any, tokenizer: Any, batch_size: int) -> dict[str, Any]:
    """Accuracy, loss, and which rows were right: bits in the rows' order, as hexadecimal digits."""
    import torch

    from peftc.finetune.encoding import batches_by_length, collator_for
    from peftc.finetune.trainer import logits_of

    batches = list(batches_by_length(evaluation, batch_size))
    logits = logits_of(compiled, evaluation, collator_for(tokenizer), batches)
    labels = torch.tensor([each["labels"] for each in evaluation.examples])
    right = (logits.argmax(-1) == labels).tolist()
    return {
        "accuracy": sum(right) / len(right),
        "held_out_loss": float(torch.nn.functional.cross_entropy(logits, labels)),
        "held_out_rows": len(right),
        "right": f"{int(''.join('01'[each] for each in right), 2):0{(len(right) + 3) // 4}x}",
    }


def baselines(setting: Setting, data: Path, model: Path) -> dict[str, Any]:
    """Majority class and logistic regression on frozen features: no seed changes them."""
    from peftc.finetune.baselines import frozen_probe, majority
    from peftc.finetune.data import encode, load_data
    from peftc.finetune.encoding import collator_for
    from peftc.finetune.job import Settings
    from peftc.finetune.models import load_for

    settings = Settings(
        model=model,
        data=data / "train.csv",
        eval_data=data / "heldout.csv",
        task="classification",
        rules=(),
        out=data,
        max_length=setting.max_length,
        max_rows=setting.rows,
    )
    read = load_data(settings)
    loaded = load_for(settings.task, model, settings.pooling, len(read.labels))
    encoded = encode(settings, read, loaded.tokenizer, loaded.input_names)
    assert encoded.evaluation is not None
    probe = frozen_probe(loaded.model, encoded.training, encoded.evaluation, collator_for(loaded.tokenizer))
    labels = [[each["labels"] for each in part.examples] for part in (encoded.training, encoded.evaluation)]
    return {"majority": majority(*labels), "probe": probe, "training_rows": len(labels[0])}


def halves(path: Path, folder: Path) -> list[Path]:
    """The file's even and odd rows, as files of their own."""
    import csv

    with path.open(encoding="utf-8", newline="") as file:
        head, *rows = list(csv.reader(file))
    paths = [folder / "even.csv", folder / "odd.csv"]
    for half, target in enumerate(paths):
        with target.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([head, *rows[half::2]])
    return paths


def forget_peak() -> int:
    """Memory in use now, in MB, from which on the peak is counted."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what capturing freed is not training's to take for nothing
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return memory("VmRSS")


def memory(field: str) -> int:
    """A field of the process's status, in MB."""
    line = next(line for line in STATUS.read_text(encoding="ascii").splitlines() if line.startswith(field))
    return int(line.split()[1]) // 1024


def main() -> None:
    """One run as asked on the command line."""
    warnings.simplefilter("ignore")
    asked = json.loads(sys.argv[1])
    setting, data, model = Setting(**asked["setting"]), Path(asked["data"]), Path(asked["model"])
    if asked["entrant"] is None:
        record = baselines(setting, data, model)
    else:
        entrant = Entrant(**{**asked["entrant"], "rules": tuple(asked["entrant"]["rules"])})
        record = run(entrant, asked["seed"], setting, data, model)
    print(json.dumps(record))


if __name__ == "__main__":
    main()
