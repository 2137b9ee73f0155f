"""The compiled model with its adapters off against the model it came from: eager, forward and backward.

Both run in one process on one thread, in interleaved rounds, in CPU time. The original runs twice in every
round, which says how far the machine itself is to be trusted. Every ratio is the median over rounds of
compiled / original.

    python benchmarks/overhead.py [--rounds 15] [--json results/overhead.json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

import peftc

LIMIT = 1.03  # what the ratio may be
CONTROL = 0.03  # how far the original may differ from itself


def encoder() -> nn.Module:
    """A post-norm encoder of MiniLM's shape."""
    config = BertConfig(
        vocab_size=30522,
        hidden_size=384,
        intermediate_size=1536,
        num_hidden_layers=6,
        num_attention_heads=12,
        max_position_embeddings=1024,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertForSequenceClassification(config)


def decoder() -> nn.Module:
    """A pre-norm decoder with grouped heads, of SmolLM2-135M's widths and a fifth of its depth."""
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=6,
        num_attention_heads=9,
        num_key_value_heads=3,
        use_cache=False,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def seconds(step: Callable[[], None]) -> float:
    """CPU time of one step."""
    start = time.process_time()
    step()
    return time.process_time() - start


def step_of(model: nn.Module, inputs: Mapping[str, Tensor], watched: Tensor) -> Callable[[], None]:
    """One forward and backward down to the embeddings, whose weight collects the gradient."""

    def step() -> None:
        output = model(**inputs)
        output.logits.float().square().mean().backward()
        watched.grad = None

    return step


def measure(make: Callable[[], nn.Module], length: int, masked: bool, rounds: int) -> dict[str, Any]:
    """Time one configuration."""
    torch.manual_seed(0)
    model: Any = make().train()
    batch = max(1, 1024 // length) * 2
    inputs: dict[str, Tensor] = {"input_ids": torch.randint(0, 4096, (batch, length))}
    if masked:
        inputs["attention_mask"] = torch.ones(batch, length, dtype=torch.int64)
    compiled: Any = peftc.compile(model, rules=["lora:q,v"])
    plan = compiled.peftc_plan
    table = model.get_input_embeddings().weight
    twin = compiled.get_input_embeddings().weight
    model.requires_grad_(False)
    table.requires_grad_(True)
    compiled.requires_grad_(False)
    twin.requires_grad_(True)
    original, ours = step_of(model, inputs, table), step_of(compiled, inputs, twin)
    with compiled.disable_adapter():
        equal = bool(torch.equal(model(**inputs).logits, compiled(**inputs).logits))
        for _ in range(2):
            original(), ours()
        first, second, third = [], [], []
        for _ in range(rounds):
            first.append(seconds(original))
            second.append(seconds(ours))
            third.append(seconds(original))
    base = [(a + b) / 2 for a, b in zip(first, third, strict=True)]
    return {
        "model": type(model).__name__,
        "length": length,
        "batch": batch,
        "mask": "ones" if masked else "none",
        "sites": len(plan.sites),
        "equal": equal,
        "ratio": statistics.median(b / a for a, b in zip(base, second, strict=True)),
        "ratio_of_minima": min(second) / min(*first, *third),
        "control": statistics.median(b / a for a, b in zip(first, third, strict=True)),
        "milliseconds": 1000 * statistics.median(base),
    }


def main() -> None:
    """Measure all configurations and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, default=None, help="also write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"torch {torch.__version__}, {platform.machine()}, 1 thread, {options.rounds} interleaved rounds, CPU time"
    )
    print(f"{'model':34} {'S':>5} {'mask':>5} {'ms':>8} {'ratio':>7} {'minima':>7} {'control':>8}  outputs")
    results = []
    for make in (encoder, decoder):
        for length in (128, 1024):
            for masked in (False, True):
                row = measure(make, length, masked, options.rounds)
                results.append(row)
                trusted = "" if abs(row["control"] - 1) <= CONTROL else "  (noisy)"
                print(
                    f"{row['model']:34} {row['length']:>5} {row['mask']:>5} {row['milliseconds']:>8.1f} {row['ratio']:>7.3f}"
                    f" {row['ratio_of_minima']:>7.3f} {row['control']:>8.3f}  {'equal' if row['equal'] else 'DIFFER'}{trusted}",
                    flush=True,
                )
    worst = max(row["ratio"] for row in results)
    print(f"worst ratio {worst:.3f}, limit {LIMIT}")
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
