"""Step times of all methods, interleaved in one process on one thread: ratios to the trained head alone.

Every round runs one step of each method in a new order, and the head's twice: the second is the control, which says
how far the machine is to be trusted. Steps are those of training: forward, backward, AdamW.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.league.entrants import Entrant, Setting

BASE, CONTROL = "head", "head (control)"
WARM = 2  # steps of each method before any is timed
BATCHES = 4


def measure(
    chosen: Sequence[Entrant], setting: Setting, data: Path, model: Path, rounds: int
) -> dict[str, Any]:
    """Median and quartiles of each method's step over the head's, by name. `chosen` has the head in it."""
    from peftc.finetune.data import encode, load_data
    from peftc.finetune.encoding import collator_for
    from peftc.finetune.job import Settings
    from peftc.finetune.models import load_for
    from peftc.finetune.sampling import LengthGrouped

    torch.manual_seed(0)
    settings = Settings(
        model=model,
        data=data / "train.csv",
        eval_fraction=0.0,
        task="classification",
        rules=(),
        out=data,
        max_length=setting.max_length,
    )
    read = load_data(settings)
    loaded = load_for(settings.task, model, settings.pooling, len(read.labels))
    training = encode(settings, read, loaded.tokenizer, loaded.input_names).training
    order = list(LengthGrouped(training.lengths, setting.batch_size, 0))
    collate = collator_for(loaded.tokenizer)
    batches = [
        collate([training[index] for index in order[start : start + setting.batch_size]])
        for start in range(0, BATCHES * setting.batch_size, setting.batch_size)
    ]
    loaded.model.train()
    steps: dict[str, Callable[[Mapping[str, Any]], None]] = {}
    for entrant in chosen:
        steps[entrant.name] = step_of(entrant, loaded, batches[0])
        for batch in batches[:WARM]:
            steps[entrant.name](batch)
        print(f"{entrant.name} is ready", flush=True)
    steps[CONTROL] = steps[BASE]
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    source = random.Random(0)
    for number in range(rounds):
        names = list(steps)
        source.shuffle(names)
        for name in names:
            started = time.process_time()
            steps[name](batches[number % BATCHES])
            seconds[name].append(time.process_time() - started)
    ratios = {}
    for name, own in seconds.items():
        each = [one / base for one, base in zip(own, seconds[BASE], strict=True)]
        low, _, high = quantiles(each, n=4)
        ratios[name] = {"median": round(median(each), 4), "low": round(low, 4), "high": round(high, 4)}
    return {
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "control": ratios.pop(CONTROL),
        "ratios": ratios,
    }


def step_of(entrant: Entrant, loaded: Any, batch: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], None]:
    """One step of training of a method, over the one frozen backbone of all."""
    import peftc
    from peftc.finetune.models import example_inputs

    example = example_inputs(loaded, "classification")
    real = {name: value for name, value in batch.items() if name != "labels"}
    with TemporaryDirectory() as name:
        saved = {}
        if entrant.first is not None:
            for half in ("half1", "half2"):
                saved[half] = Path(name) / half
                first: Any = peftc.compile(loaded.model, [entrant.first], example)
                first.save_pretrained(saved[half])
        compiled: Any = peftc.compile(loaded.model, list(entrant.rules), example, saved=saved, data=real)
    optimizer = torch.optim.AdamW(peftc.param_groups(compiled, lr=1e-6), fused=True)

    def step(inputs: Mapping[str, Any]) -> None:
        optimizer.zero_grad()
        compiled(**inputs).loss.backward()
        optimizer.step()

    return step
