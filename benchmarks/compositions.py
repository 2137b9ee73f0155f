"""All pairs of rules: does each compose, by which laws, and does their order matter? Random weights, tiny models.

A pair is compiled in both orders on a pre-norm decoder (on an encoder where a rule needs a task's head), every new
parameter with the same random values in each. For each pair it is measured whether

- all that the plan says is trained gets a gradient that is not 0,
- with one rule as it starts, which is as if it were not there, the outputs are those of the other alone,
- in both orders, the outputs are those of both rules' equations written by hand into the plain model,
- merging one into the weights of a plain model and compiling the other on that gives the same outputs,
- both orders give the same outputs,
- the pair comes back from a folder with the same bits, and whether it can be merged.

    python benchmarks/compositions.py [--only NAME …] [--again]    measures what is missing, writes the records
    python -m docs.make                                            writes docs/compositions.md from them
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from benchmarks.captured import Captured, fill, without_gradient  # noqa: E402
from benchmarks.laws import broken  # noqa: E402
from peftc.errors import MergeError, NoMatchError, PeftcError  # noqa: E402
from peftc.lang import default_library  # noqa: E402
from peftc.match import Plan  # noqa: E402
from peftc.runtime.merging import unmergeable  # noqa: E402
from peftc.store import load_adapter  # noqa: E402
from tests.models import bert, llama, padding, tokens  # noqa: E402
from tests.rules.written_out import WrittenOut  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "compositions.json"
START = 1e-6
"""How near to the model a rule starts that starts as the model."""


@cache
def captured(kind: str) -> Captured:
    """A model with one layer, and a call with labels and padding."""
    model = llama(num_hidden_layers=1) if kind == "decoder" else bert(num_hidden_layers=1)
    labels = tokens().masked_fill(padding() == 0, -100) if kind == "decoder" else torch.tensor([0, 1, 1])
    return Captured(model, {"input_ids": tokens(), "attention_mask": padding(), "labels": labels})


def out(model: nn.Module, kind: str) -> Tensor:
    """Logits."""
    with torch.no_grad():
        logits: Tensor = model(**captured(kind).given).logits
    return logits


def far(one: Tensor, other: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((one - other).abs().max() / max(1.0, float(other.abs().max())))


def merged(compiled: Any) -> Any:
    """The merged model. What packing its weights again would lose is told, and no matter here: they stay unpacked."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="[0-9]+ merged weights were in", category=UserWarning)
        return compiled.merge_and_unload()


@cache
def alone(kind: str, name: str) -> dict[str, Any]:
    """One rule by itself: how it acts, whether it starts as the model, and the merged model if there is one."""
    compiled = captured(kind).compiled([name])
    starts = far(out(compiled, kind), out(captured(kind).model, kind)) <= START
    fill(compiled)
    plain = None if unmergeable(compiled.peftc_plan) else merged(compiled)
    # A rule may put in biases, which are then read.
    below = None if plain is None else captured(kind).of(plain)
    return {
        "compiled": compiled,
        "out": out(compiled, kind),
        "starts": starts,
        "merged": plain,
        "below": below,
    }


def kind_for(names: Iterable[str]) -> str:
    """The model on which every rule finds a site."""
    for name in names:
        try:
            captured("decoder").compiled([name])
        except NoMatchError:
            return "encoder"
    return "decoder"


def measure(one: str, other: str) -> dict[str, Any]:
    """The record of a pair."""
    kind, names = kind_for((one, other)), (one, other)
    record: dict[str, Any] = {"model": kind}
    for name in names:
        alone(kind, name)  # what it cannot do by itself is no refusal of the pair
    try:
        both = [fill(captured(kind).compiled(order)) for order in (names, names[::-1])]
    except PeftcError as error:
        text = str(error)
        said = all(name in text for name in names)
        return {**record, "refused": f"{type(error).__name__}: {error.message}", "names both": said}
    outs = [out(compiled, kind) for compiled in both]
    record["order"] = far(*outs)
    record["equations"] = [
        from_equations(kind, compiled, order)
        for compiled, order in zip(both, (names, names[::-1]), strict=True)
    ]
    both[0](**captured(kind).given).loss.backward()
    record["gradients"] = without_gradient(both[0])
    record["beside"], record["coupled"] = {}, {}
    for name, absent in (names, names[::-1]):
        if alone(kind, absent)["starts"]:
            held = alone(kind, name)
            distance = far(out(fill(captured(kind).compiled(names), held["compiled"]), kind), held["out"])
            told = "coupled" if starts_from_trained(alone(kind, absent), held) else "beside"
            record[told][name] = distance
    record["over"] = {}
    for inside, outside in (names, names[::-1]):
        if (plain := alone(kind, inside)["merged"]) is not None:
            on_it = out(fill(alone(kind, inside)["below"].compiled([outside], plain)), kind)
            record["over"][inside] = [far(each, on_it) for each in outs]
    with TemporaryDirectory() as folder:
        both[0].save_pretrained(Path(folder) / "adapter")
        # Trainable, as it was saved: torch multiplies what needs a gradient in another order.
        again: Any = load_adapter(
            captured(kind).model, Path(folder) / "adapter", captured(kind).given, trainable=True
        )
        record["saved"] = torch.equal(out(again.eval(), kind), outs[0])
    try:
        record["merged"] = far(out(merged(both[0]), kind), outs[0])
    except MergeError as error:
        record["merged"] = str(error.message)
    return record


def from_equations(kind: str, compiled: Any, names: Sequence[str]) -> float:
    """How far outputs are from those of the rules' equations in the plain model, where tokens are no padding."""
    held, real = captured(kind), padding().bool() if kind == "decoder" else slice(None)
    with torch.no_grad():
        want = WrittenOut(held.model, kind, compiled, names)(**held.given)
    return far(out(compiled, kind)[real], want[real])


def starts_from_trained(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether a rule starts from weights of the model which the other trains: its start is one of the weights too."""
    plan: Plan = one["compiled"].peftc_plan
    reading = [each for each in plan.applications if any(made.computed for made in each.parameters)]
    weights = {path for each in reading for path in each.site.weights.values()}
    return bool(weights & set(other["compiled"].peftc_plan.trained))


def digest_of(*names: str) -> str:
    """What a record is of."""
    rules = {rule.name: rule.digest for rule in default_library().rules()}
    return "-".join(rules[name][:8] for name in names)


def main() -> int:
    """Measures what is missing; prints the laws that are broken."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="pairs with one of these")
    parser.add_argument("--again", action="store_true", help="measure also what was measured")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    kept: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    names = default_library().names()
    kept = {pair: held for pair, held in kept.items() if all(name in names for name in pair.split("+"))}
    wrong = 0
    for one, other in combinations(names, 2):
        pair, digest = f"{one}+{other}", digest_of(one, other)
        if arguments.only and not {one, other} & set(arguments.only):
            continue
        before = kept.get(pair, {})
        if not arguments.again and before.get("digest") == digest and "failed" not in before:
            continue
        started = time.perf_counter()
        try:
            record = measure(one, other)
        except Exception as error:  # noqa: BLE001 - whatever it is, it stands in the table
            record = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
        kept[pair] = {"digest": digest, **record}
        partial = RESULTS.with_suffix(".partial")
        partial.write_text(json.dumps(dict(sorted(kept.items())), indent=0) + "\n", encoding="utf-8")
        partial.replace(RESULTS)
        laws = broken(one, other, record)
        wrong += bool(laws)
        print(f"{pair} {'; '.join(laws) or 'holds'} ({time.perf_counter() - started:.1f} s)", flush=True)
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
