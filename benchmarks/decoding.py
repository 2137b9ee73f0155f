"""Time of one decoding step of a compiled model with its adapters off, against the model it came from.

    python benchmarks/decoding.py [--rounds N] [--smollm2]

Steps with a cache, one new token each, greedy, eager, one thread. Rounds of both are interleaved and the ratio is that of
the medians of CPU time; *control* is the original against itself. Outputs are compared token by token first.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

PROMPT, STEPS = 16, 24


def steps(model: Any, ids: torch.Tensor, adapter_off: bool) -> tuple[float, torch.Tensor]:
    """Seconds of CPU time per token, and the tokens."""
    if adapter_off:
        with model.disable_adapter():
            return steps(model, ids, adapter_off=False)
    with torch.no_grad():
        output = model(input_ids=ids, use_cache=True)
        token = output.logits[:, -1:].argmax(-1)
        made, cache = [token], output.past_key_values
        start = time.process_time()
        for _ in range(STEPS):
            output = model(input_ids=token, past_key_values=cache, use_cache=True)
            token, cache = output.logits[:, -1:].argmax(-1), output.past_key_values
            made.append(token)
        return (time.process_time() - start) / STEPS, torch.cat(made, 1)


def compare(name: str, model: Any, batch: int, rounds: int) -> None:
    """One row."""
    import peftc

    compiled: Any = peftc.compile(model, ["lora:q,v"]).eval()
    words = model.config.vocab_size
    ids = torch.randint(5, words, (batch, PROMPT), generator=torch.Generator().manual_seed(0))
    _, want = steps(model, ids, adapter_off=False)
    _, got = steps(compiled, ids, adapter_off=True)
    assert torch.equal(want, got), "the tokens differ"
    times: dict[str, list[float]] = {"original": [], "compiled": [], "control": []}
    for _ in range(rounds):
        times["original"].append(steps(model, ids, adapter_off=False)[0])
        times["compiled"].append(steps(compiled, ids, adapter_off=True)[0])
        times["control"].append(steps(model, ids, adapter_off=False)[0])
    median = {key: statistics.median(values) for key, values in times.items()}
    print(
        f"| {name} | {batch} | {1000 * median['original']:.2f} ms | {median['compiled'] / median['original']:.3f} "
        f"| {median['control'] / median['original']:.3f} |",
        flush=True,
    )


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--smollm2", action="store_true", help="also on the real weights of SmolLM2")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    from tests.models import llama, smollm2

    print(
        "| model | batch | original, per token | compiled / original | control |\n| --- | --- | --- | --- | --- |"
    )
    models = {"tiny Llama": llama()} | ({"SmolLM2": smollm2()} if arguments.smollm2 else {})
    for name, model in models.items():
        for batch in (1, 8):
            compare(name, model.eval(), batch, arguments.rounds)


if __name__ == "__main__":
    main()
