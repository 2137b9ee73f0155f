"""Which rules work on which architectures: compiles tiny models of every one that transformers has, and trains them.

    python benchmarks/coverage.py --certify     the 57 of tests/zoo, each rule with its certificate
    python benchmarks/coverage.py --every       every entry of the model tables: does it compile and train?
    python benchmarks/coverage.py               write docs/coverage.md and docs/coverage.png from what was measured

What was measured is kept in benchmarks/results/coverage.json, and a run goes on where the last one stopped; --again
measures anew. Needs the test dependencies.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

RESULTS = ROOT / "benchmarks" / "results" / "coverage.json"
SPECS = (
    "lora:q,v(rank=4)",
    "lora:all-linear(rank=4)",
    "bottleneck:ffn(size=4)",
    "parallel:ffn(size=4)",
    "bitfit",
    "prefix:4",
)
TRAINED = ("lora:attention(rank=4)", "lora:all-linear(rank=4)", "lora:conv(rank=4)")
SECONDS = 300
STEPS = 4
BATCH = 8
CLOSE = 1e-4
AT_ONCE = 60


def certify(model_type: str, spec: str) -> dict[str, Any]:
    """The certificate of one rule on one architecture."""
    import peftc
    from peftc.errors import NoMatchError, UnknownPartError
    from tests.zoo import entry, inputs

    model = entry(model_type).model()
    given = inputs(model)
    try:
        compiled: Any = peftc.compile(model, [spec], given, defaults=False)
    except (NoMatchError, UnknownPartError) as error:
        return {"verdict": "no site", "why": f"{error.message}; {error.hint}"}
    certificate = peftc.check(compiled, given)
    return {
        "verdict": "pass" if certificate.passed else "fail",
        "why": "; ".join(f"{each.name}: {each.detail}" for each in certificate.failures()),
        "absent": [each.name for each in certificate.findings if each.verdict == "not applicable"],
        "sites": len(compiled.peftc_plan.applications),
    }


def train(model_type: str, kind: str) -> dict[str, Any]:
    """Whether a model compiles, equals the original with adapters off, and learns in a few steps."""
    from peftc.certificate.subject import run
    from peftc.errors import NoMatchError, UnknownPartError
    from tests.zoo import entry, inputs

    found = entry(model_type, kind)
    try:
        model = found.model()
        given = inputs(model)
        try:
            want = run(model, given)
        except Exception:  # noqa: BLE001 - of two layers, none may be of a kind whose cache counts tokens
            model.config.use_cache = False
            want = run(model, given)
    except Exception as why:  # noqa: BLE001 - a shrunk config may fit no model: told in the table
        return {"verdict": "no model", "why": line_of(why)}
    spec = TRAINED[0]
    compiled: Any = None
    for spec in TRAINED:
        try:
            compiled = compiled_with(model, spec, given)
            break
        except (NoMatchError, UnknownPartError) as why:
            reason = line_of(why)
    if compiled is None:
        return {"verdict": "no site", "why": reason}
    return {
        **learned(model, compiled, given, want),
        "spec": spec,
        "sites": len(compiled.peftc_plan.applications),
    }


def compiled_with(model: Any, spec: str, given: dict[str, Any]) -> Any:
    """A compiled model; some take another way without a mask while they are traced, and users give one."""
    import torch

    import peftc
    from peftc.errors import CaptureError

    try:
        return peftc.compile(model, [spec], given, defaults=False)
    except CaptureError:
        if "input_ids" not in given or "attention_mask" in given:
            raise
    given["attention_mask"] = torch.ones_like(given["input_ids"])
    return peftc.compile(model, [spec], given, defaults=False)


def learned(model: Any, compiled: Any, given: dict[str, Any], want: Any) -> dict[str, Any]:
    """Whether a compiled model equals its original at two sizes, and lowers a loss."""
    import torch

    from peftc.certificate.gradients import loss_of
    from peftc.certificate.subject import error, run
    from tests.zoo import inputs

    compiled.eval()
    with compiled.disable_adapter():
        off = error(run(compiled, given), want)
    if off > CLOSE:
        return {"verdict": "fail", "why": f"adapters off differ by {off:.1g}"}
    other = inputs(model, 3, 17, seed=6)
    if "attention_mask" in given:
        other["attention_mask"] = torch.ones_like(other["input_ids"])
    try:
        again = run(model, other)
    except Exception:  # noqa: BLE001 - the model itself does not take this size
        again = None
    if again is not None:
        with compiled.disable_adapter():
            off = error(run(compiled, other), again)
        if off > CLOSE:
            return {"verdict": "fail", "why": f"adapters off differ by {off:.1g} at another size"}
    if any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in model.modules()):  # noqa: SLF001
        given = inputs(model, BATCH)  # of two examples, a batch's statistics leave only which is which
    compiled.train()
    optimizer = torch.optim.AdamW([p for p in compiled.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for step in range(STEPS + 1):
        torch.manual_seed(0)  # the same dropout at each step: then the loss shows what is learned
        loss = loss_of(compiled, given)
        losses.append(float(loss))
        if step < STEPS:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    lower = losses[-1] < losses[0]
    return {
        "verdict": "pass" if lower else "fail",
        "why": "" if lower else f"the loss went from {losses[0]:.4g} to {losses[-1]:.4g}",
    }


def line_of(error: BaseException) -> str:
    """The first line of an error with its kind, and the model's own line where it shows one."""
    lines = [line for line in str(getattr(error, "message", error)).splitlines() if line.strip()]
    shown = f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__
    detail = getattr(error, "detail", ())
    return f"{shown} at `{detail[-1].strip()}`" if detail else shown


def measured(job: tuple[str, str, str]) -> tuple[str, dict[str, Any]]:
    """One job in a process of its own, within its time."""
    what, model_type, detail = job
    warnings.simplefilter("ignore")
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()

    def late(*_: object) -> None:
        message = f"longer than {SECONDS} s"
        raise TimeoutError(message)

    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    start = time.perf_counter()
    try:
        row = certify(model_type, detail) if what == "certify" else train(model_type, detail)
    except BaseException as error:  # noqa: BLE001 - whatever it is, it stands in the table
        row = {"verdict": "error", "why": line_of(error)}
    finally:
        signal.alarm(0)
    for thread in threading.enumerate():
        if thread.name == "peftc-capture":
            thread.join()  # it was interrupted: while it traces, torch takes every call for a trace
    row["seconds"] = round(time.perf_counter() - start, 1)
    return "|".join(job), row


def jobs(arguments: argparse.Namespace) -> Iterator[tuple[str, str, str]]:
    """What is to be measured."""
    from tests.zoo import THE_57, entries

    if arguments.every:
        for found in entries():
            yield "train", found.model_type, found.table
    if arguments.certify:
        for model_type in THE_57:
            for spec in SPECS:
                yield "certify", model_type, spec


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run what is missing, keeping each result as it comes."""
    kept: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    todo = [
        job
        for job in jobs(arguments)
        if (arguments.again or "|".join(job) not in kept) and (not arguments.only or job[1] in arguments.only)
    ]
    RESULTS.parent.mkdir(exist_ok=True)
    done = 0
    for start in range(
        0, len(todo), AT_ONCE
    ):  # fresh processes: what models leave behind is not kept for hours
        with ProcessPoolExecutor(arguments.jobs, get_context("spawn")) as pool:
            for future in as_completed([pool.submit(measured, job) for job in todo[start : start + AT_ONCE]]):
                key, row = future.result()
                kept[key], done = row, done + 1
                print(
                    f"{done}/{len(todo)} {key} {row['verdict']} {row['why']} {row['seconds']} s", flush=True
                )
                partial = RESULTS.with_suffix(".partial")
                partial.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n")
                partial.replace(RESULTS)
    return kept


def page(kept: dict[str, Any]) -> str:
    """docs/coverage.md."""
    from tests.zoo import THE_57

    certified = {tuple(key.split("|")[1:]): row for key, row in kept.items() if key.startswith("certify")}
    trained = {tuple(key.split("|")[1:]): row for key, row in kept.items() if key.startswith("train")}
    lines = [
        "# Coverage",
        "",
        "Made by `python benchmarks/coverage.py`, after `--certify` and `--every`, from tiny random models of",
        "transformers' own classes (`tests/zoo`). peftc knows none of them by name.",
        "",
        "## Rules with their certificate",
        "",
        "✓: `peftc.check` passes, that is adapters off equal the model, gradients, merging, visibility, padding,",
        "batch, checkpointing, cached decoding and `torch.compile`, as far as they apply. –: the model has no such",
        "site, and the typed error says so.",
        "",
        "![coverage](coverage.png)",
        "",
        "| architecture | " + " | ".join(f"`{spec}`" for spec in SPECS) + " |",
        "| --- " * (len(SPECS) + 1) + "|",
    ]
    marks = {"pass": "✓", "no site": "–"}
    for model_type in THE_57:
        rows = [certified.get((model_type, spec), {"verdict": "not measured"}) for spec in SPECS]
        lines.append(
            f"| {model_type} | "
            + " | ".join(marks.get(row["verdict"], row["verdict"]) for row in rows)
            + " |"
        )
    not_right = [(key, row) for key, row in sorted(certified.items()) if row["verdict"] not in marks]
    absent = [(key, row) for key, row in sorted(certified.items()) if row["verdict"] == "no site"]
    if absent:
        lines += ["", "No site:", "", *(f"- {key[0]}, `{key[1]}`: {row['why']}" for key, row in absent)]
    if not_right:
        lines += ["", "Not right:", "", *(f"- {key[0]}, `{key[1]}`: {row['why']}" for key, row in not_right)]
    counted = Counter(row["verdict"] for row in trained.values())
    ran = sum(counted.values()) - counted["no model"]
    by_convolutions = sum(
        row["verdict"] == "pass" and row.get("spec") == TRAINED[-1] for row in trained.values()
    )
    lines += [
        "",
        "## Every entry of the model tables",
        "",
        f"{counted['pass'] - by_convolutions} of {ran} models that run compile with `lora:attention`, or "
        "`lora:all-linear` where there is no attention, equal the model with adapters off at two sizes, and lower a "
        f"loss in {STEPS} steps. {by_convolutions} more, whose only linear map is their head, do so with `lora:conv`. "
        f"{counted['no model']} others do not run here.",
        "",
        "| model | kind | why it is not among them |",
        "| --- | --- | --- |",
    ]
    for (model_type, kind), row in sorted(trained.items()):
        if row["verdict"] not in ("pass", "no model"):
            lines.append(f"| {model_type} | {kind} | {row['verdict']}: {row['why'].replace('|', '/')} |")
    lines += ["", "Without a model here:", ""]
    for (model_type, kind), row in sorted(trained.items()):
        if row["verdict"] == "no model":
            lines.append(f"- {model_type} ({kind}): {row['why']}")
    return "\n".join(lines) + "\n"


def picture(kept: dict[str, Any], path: Path) -> None:
    """The matrix as a picture."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.colors import ListedColormap

    from tests.zoo import THE_57

    codes = {"pass": 3, "no site": 2, "not measured": 1}
    grid = [
        [
            codes.get(kept.get(f"certify|{t}|{spec}", {"verdict": "not measured"})["verdict"], 0)
            for t in THE_57
        ]
        for spec in SPECS
    ]
    figure, axes = plt.subplots(figsize=(16, 3.4), layout="constrained")
    colours = ListedColormap(["#c0392b", "#eeeeee", "#b8c4ce", "#2e8b57"])
    axes.imshow(grid, cmap=colours, vmin=0, vmax=3, aspect="auto")
    axes.set_xticks(range(len(THE_57)), THE_57, rotation=90, fontsize=8)
    axes.set_yticks(range(len(SPECS)), SPECS, fontsize=9)
    axes.set_xticks([x - 0.5 for x in range(1, len(THE_57))], minor=True)
    axes.set_yticks([y - 0.5 for y in range(1, len(SPECS))], minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="both", length=0)
    axes.set_title(
        "green: the certificate passes · blue-grey: the model has no such site · red: it does not",
        fontsize=10,
    )
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure what is asked for, then write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--certify", action="store_true", help="each rule on each of the 57, with its certificate"
    )
    parser.add_argument("--every", action="store_true", help="every entry of the model tables")
    parser.add_argument("--again", action="store_true", help="measure also what was measured before")
    parser.add_argument("--only", nargs="*", default=[], help="only these model types")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    arguments = parser.parse_args()
    kept = measure(arguments)
    (ROOT / "docs" / "coverage.md").write_text(page(kept))
    picture(kept, ROOT / "docs" / "coverage.png")


if __name__ == "__main__":
    main()
