"""Which rules work on which architectures: compiles tiny models of every one that transformers has, and trains them.

    python benchmarks/coverage.py --certify     the 57 of tests/zoo, each rule with its certificate
    python benchmarks/coverage.py --rules       the 57, every rule of the library: does it act, train and merge?
    python benchmarks/coverage.py --every       every entry of the model tables: does it compile and train?
    python benchmarks/coverage.py               write docs/coverage.md and its pictures from what was measured

What was measured is kept in benchmarks/results/coverage.json, each row with a digest of the code that it was measured
with, and a run goes on where the last one stopped. --stale measures anew what is of other code, --again everything.
Needs the test dependencies.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
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
SECONDS = {"certify": 300, "rules": 1500, "train": 300}
STEPS = 4
BATCH = 8
CLOSE = 1e-4
AT_ONCE = 60


@cache
def state() -> str:
    """A digest of the compiler, the rules and the zoo as they are: what a row was measured with."""
    digest = hashlib.sha256()
    for folder, kinds in (("peftc", (".py", ".toml")), ("rules", (".toml",)), ("tests/zoo", (".py",))):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in kinds:
                digest.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:8]


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


def every_rule(model_type: str) -> dict[str, dict[str, Any]]:
    """Every rule of the library on one architecture, of one capture."""
    from benchmarks.captured import Captured
    from peftc.lang import default_library
    from tests.zoo import entry, inputs

    model = entry(model_type).model().eval()
    captured = Captured(model, inputs(model))
    found = {}
    for name in default_library().names():
        start = time.perf_counter()
        try:
            row = one_rule(captured, name)
        except TimeoutError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it stands in the table
            row = {"verdict": "error", "why": line_of(error)}
        found[name] = {**row, "seconds": round(time.perf_counter() - start, 1)}
    return found


def one_rule(captured: Any, name: str) -> dict[str, Any]:
    """Whether a rule leaves the model as it is with adapters off, acts with them on, trains all it plans, and merges."""
    from benchmarks.captured import fill, planned
    from peftc.certificate.gradients import gradients_reach
    from peftc.certificate.identity import identity_at_start
    from peftc.certificate.properties import adapters_off, merged
    from peftc.certificate.subject import error, examined, run
    from peftc.errors import NoMatchError, UnknownPartError

    try:
        compiled = captured.compiled([name])
    except (NoMatchError, UnknownPartError) as why:
        return {"verdict": "no site", "why": line_of(why)}
    with examined(fill(compiled), captured.given) as subject:
        properties = (adapters_off, identity_at_start, gradients_reach, merged)
        findings = [examine(subject) for examine in properties]
        acts = error(run(subject.compiled, captured.given), run(subject.plain, captured.given))
    wrong = [f"{each.name}: {each.detail}" for each in findings if each.verdict == "fail"]
    if planned(compiled.peftc_plan) and not 0 < acts < float("inf"):
        wrong.append("with adapters on, nothing changes, or not to numbers")
    return {
        "verdict": "fail" if wrong else "pass",
        "why": "; ".join(wrong),
        "absent": [each.name for each in findings if each.verdict == "not applicable"],
    }


def train(model_type: str, kind: str) -> dict[str, Any]:
    """Whether a model compiles, equals the original with adapters off, and learns in a few steps."""
    from peftc.capture import UNREAD
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
    spec, unread = TRAINED[0], list[str]()
    compiled: Any = None
    for spec in TRAINED:
        try:
            compiled = compiled_with(model, spec, given)
            break
        except (NoMatchError, UnknownPartError) as why:
            reason = line_of(why)
            unread = unread or [line for line in why.detail if line.startswith(UNREAD)]
    if compiled is None:
        return {"verdict": "no site", "why": reason}
    return {
        **learned(model, compiled, given, want),
        "spec": spec,
        "unread": unread,
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


def measured(job: tuple[str, str, str]) -> dict[str, dict[str, Any]]:
    """One job in a process of its own, within its time: its rows by their keys."""
    what, model_type, detail = job
    warnings.simplefilter("ignore")
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()

    def late(*_: object) -> None:
        message = f"longer than {SECONDS[what]} s"
        raise TimeoutError(message)

    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS[what])
    start = time.perf_counter()
    rows: dict[str, dict[str, Any]] = {}
    row: dict[str, Any] = {}
    try:
        if what == "rules":
            rows = {f"{what}|{model_type}|{name}": each for name, each in every_rule(model_type).items()}
        else:
            row = certify(model_type, detail) if what == "certify" else train(model_type, detail)
    except BaseException as error:  # noqa: BLE001 - whatever it is, it stands in the table
        row = {"verdict": "error", "why": line_of(error)}
    finally:
        signal.alarm(0)
    for thread in threading.enumerate():
        if thread.name == "peftc-capture":
            thread.join()  # it was interrupted: while it traces, torch takes every call for a trace
    if row:
        rows["|".join(job)] = {**row, "seconds": round(time.perf_counter() - start, 1)}
    return {key: {**each, "code": state()} for key, each in rows.items()}


def jobs(arguments: argparse.Namespace) -> Iterator[tuple[str, str, str]]:
    """What is to be measured."""
    from tests.zoo import THE_57, entries

    if arguments.every:
        for found in entries():
            yield "train", found.model_type, found.table
    if arguments.rules:
        for model_type in THE_57:
            yield "rules", model_type, ""
    if arguments.certify:
        for model_type in THE_57:
            for spec in SPECS:
                yield "certify", model_type, spec


def is_wanted(job: tuple[str, str, str], kept: dict[str, Any], arguments: argparse.Namespace) -> bool:
    """Whether a job is to run: not measured yet, measured with other code, or asked for anew."""
    if arguments.only and job[1] not in arguments.only:
        return False
    key = "|".join(job)
    rows = [row for name, row in kept.items() if name == key or (not job[2] and name.startswith(key))]
    old = any(row.get("code") != state() for row in rows)
    return not rows or arguments.again or (arguments.stale and old)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run what is missing, keeping each result as it comes."""
    kept: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    todo = [job for job in jobs(arguments) if is_wanted(job, kept, arguments)]
    RESULTS.parent.mkdir(exist_ok=True)
    done = 0
    for start in range(
        0, len(todo), AT_ONCE
    ):  # fresh processes: what models leave behind is not kept for hours
        with ProcessPoolExecutor(arguments.jobs, get_context("spawn")) as pool:
            for future in as_completed([pool.submit(measured, job) for job in todo[start : start + AT_ONCE]]):
                rows, done = future.result(), done + 1
                kept |= rows
                for key, row in rows.items():
                    print(
                        f"{done}/{len(todo)} {key} {row['verdict']} {row['why']} {row['seconds']} s",
                        flush=True,
                    )
                partial = RESULTS.with_suffix(".partial")
                partial.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n")
                partial.replace(RESULTS)
    return kept


def main() -> None:
    """Measure what is asked for, then write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--certify", action="store_true", help="each rule on each of the 57, with its certificate"
    )
    parser.add_argument("--rules", action="store_true", help="every rule of the library on each of the 57")
    parser.add_argument("--every", action="store_true", help="every entry of the model tables")
    parser.add_argument("--again", action="store_true", help="measure also what was measured before")
    parser.add_argument("--stale", action="store_true", help="measure also what was measured with other code")
    parser.add_argument("--only", nargs="*", default=[], help="only these model types")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    arguments = parser.parse_args()
    from benchmarks.coverage_page import write

    kept = measure(arguments)
    write(kept, ROOT / "docs")


if __name__ == "__main__":
    main()
