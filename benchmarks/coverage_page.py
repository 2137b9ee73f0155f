"""docs/coverage.md and its pictures, from the records of `benchmarks/coverage.py`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Rows = Mapping[tuple[str, str], Mapping[str, Any]]
MARKS = {"pass": "✓", "no site": "–"}


def write(kept: Mapping[str, Any], folder: Path) -> None:
    """The page, and the two matrices as pictures."""
    from benchmarks.coverage import SPECS
    from peftc.lang import default_library
    from tests.zoo import THE_57

    (folder / "coverage.md").write_text(page(kept), encoding="utf-8")
    picture(of(kept, "certify"), THE_57, SPECS, folder / "coverage.png")
    if rules := of(kept, "rules"):
        picture(rules, THE_57, default_library().names(), folder / "coverage_rules.png")


def of(kept: Mapping[str, Any], what: str) -> Rows:
    """The rows of one sweep, by architecture and rule or kind."""
    split = {tuple(key.split("|")): row for key, row in kept.items()}
    return {(key[1], key[2]): row for key, row in split.items() if key[0] == what}


def page(kept: Mapping[str, Any]) -> str:
    """docs/coverage.md."""
    lines = [
        "# Coverage",
        "",
        "Made by `python benchmarks/coverage.py`, after `--certify`, `--rules` and `--every`, from tiny random models of",
        "transformers' own classes (`tests/zoo`). peftc knows none of them by name.",
        "",
        *measured_with(kept),
        *certificates(of(kept, "certify")),
        *every_rule(of(kept, "rules")),
        *tables(of(kept, "train")),
    ]
    return "\n".join(lines) + "\n"


def measured_with(kept: Mapping[str, Any]) -> Iterator[str]:
    """Of which states of the code the rows are."""
    from benchmarks.coverage import state

    counted = Counter(row.get("code", "unknown") for row in kept.values())
    said = ", ".join(f"`{code}` ({number})" for code, number in counted.most_common())
    yield f"The compiler, the rules and the zoo have the digest `{state()}` now; rows were measured with {said}."
    yield ""


def certificates(rows: Rows) -> Iterator[str]:
    """The matrix of rules with their certificates."""
    from benchmarks.coverage import SPECS
    from tests.zoo import THE_57

    yield "## Rules with their certificate"
    yield ""
    yield "✓: `peftc.check` passes, that is adapters off equal the model, gradients, merging, visibility, padding,"
    yield "batch, checkpointing, cached decoding and `torch.compile`, as far as they apply. –: the model has no such"
    yield "site, and the typed error says so."
    yield ""
    yield "![coverage](coverage.png)"
    yield ""
    yield "| architecture | " + " | ".join(f"`{spec}`" for spec in SPECS) + " |"
    yield "| --- " * (len(SPECS) + 1) + "|"
    for model_type in THE_57:
        verdicts = [rows.get((model_type, spec), {}).get("verdict", "not measured") for spec in SPECS]
        yield f"| {model_type} | " + " | ".join(MARKS.get(each, each) for each in verdicts) + " |"
    yield from listed("No site", {key: row for key, row in rows.items() if row["verdict"] == "no site"})
    yield from listed("Not right", {key: row for key, row in rows.items() if row["verdict"] not in MARKS})
    yield from not_applicable(rows)
    yield ""


def listed(title: str, rows: Rows) -> Iterator[str]:
    """Why some rows are not as others."""
    if rows:
        yield from ("", f"{title}:", "")
        yield from (f"- {key[0]}, `{key[1]}`: {row['why']}" for key, row in sorted(rows.items()))


def not_applicable(rows: Rows) -> Iterator[str]:
    """Of how many certificates each property was no part."""
    passed = [row for row in rows.values() if row["verdict"] == "pass"]
    counted = Counter(name for row in passed for name in row["absent"])
    if counted:
        yield from (
            "",
            f"Of {len(passed)} certificates, a property does not apply (`peftc.check` says why) in:",
            "",
        )
        yield ", ".join(f"{name} {number}" for name, number in counted.most_common()) + "."


def every_rule(rows: Rows) -> Iterator[str]:
    """Every rule of the library on the 57."""
    if not rows:
        return
    yield "## Every rule of the library"
    yield ""
    yield "Of each rule on each of the 57: with adapters off the outputs are the model's, with random values they are others,"
    yield "all that the plan trains gets a gradient that is not 0, and the merged model equals the one beside, where the rule"
    yield "merges."
    yield ""
    yield "![every rule](coverage_rules.png)"
    yield ""
    yield "| rule | holds | no such site | else |"
    yield "| --- | --- | --- | --- |"
    for name in sorted({key[1] for key in rows}):
        own = {key[0]: row for key, row in rows.items() if key[1] == name}
        counted = Counter(row["verdict"] for row in own.values())
        without = sorted(model for model, row in own.items() if row["verdict"] == "no site")
        rest = [
            f"{model}: {row['why']}".replace("|", "/")
            for model, row in sorted(own.items())
            if row["verdict"] not in MARKS
        ]
        yield f"| {name} | {counted['pass']} | {', '.join(without) or '–'} | {'; '.join(rest) or '–'} |"
    yield ""


def tables(rows: Rows) -> Iterator[str]:
    """Every entry of the model tables."""
    from benchmarks.coverage import STEPS, TRAINED

    attention, linears, convolutions = TRAINED
    counted = Counter(row["verdict"] for row in rows.values())
    passed = Counter(row.get("spec") for row in rows.values() if row["verdict"] == "pass")
    ran = sum(counted.values()) - counted["no model"]
    yield "## Every entry of the model tables"
    yield ""
    yield (
        f"Of {ran} models that run, {counted['pass']} compile, equal the model with adapters off at two sizes, and lower "
        f"a loss in {STEPS} steps: {passed[attention]} with `{attention}`; {passed[linears]} with `{linears}`, where no "
        f"attention was found; {passed[convolutions]} with `{convolutions}`, where the only linear map is the head. "
        f"{counted['no model']} others do not run here."
    )
    yield from without_attention({key: row for key, row in rows.items() if row.get("spec") == linears})
    yield ""
    yield "| model | kind | why it is not among them |"
    yield "| --- | --- | --- |"
    for (model_type, kind), row in sorted(rows.items()):
        if row["verdict"] not in ("pass", "no model"):
            yield f"| {model_type} | {kind} | {row['verdict']}: {row['why'].replace('|', '/')} |"
    yield from ("", "Without a model here:", "")
    for (model_type, kind), row in sorted(rows.items()):
        if row["verdict"] == "no model":
            yield f"- {model_type} ({kind}): {row['why']}"


def without_attention(rows: Rows) -> Iterator[str]:
    """Models in which no attention was found, by the reason: rows measured before it was kept tell none."""
    from peftc.capture import UNREAD

    softmax = {key: row["unread"] for key, row in rows.items() if row.get("unread")}
    untold = [key for key, row in rows.items() if "unread" not in row]
    none = [key for key, row in rows.items() if row.get("unread") == []]
    if none:
        yield from ("", f"No softmax attention of linear maps is in {len(none)}: {names_of(none)}.")
    if softmax:
        yield from ("", f"A softmax was not read as attention in {len(softmax)}:", "")
        for (model_type, kind), lines in sorted(softmax.items()):
            yield f"- {model_type} ({kind}): {lines[0].removeprefix(UNREAD)}"
    if untold:
        yield from ("", f"Measured before the reason was kept, {len(untold)}: {names_of(untold)}.")


def names_of(keys: Sequence[tuple[str, str]]) -> str:
    """Models with their kinds."""
    return ", ".join(f"{model_type} ({kind})" for model_type, kind in sorted(keys))


def picture(rows: Rows, models: Sequence[str], names: Sequence[str], path: Path) -> None:
    """A matrix: green, a rule holds; blue-grey, there is no such site; red, it does not hold."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.colors import ListedColormap

    codes = {"pass": 3, "no site": 2, "not measured": 1}
    absent = {"verdict": "not measured"}
    grid = [[codes.get(rows.get((model, name), absent)["verdict"], 0) for model in models] for name in names]
    figure, axes = plt.subplots(figsize=(16, 1.6 + 0.3 * len(names)), layout="constrained")
    colours = ListedColormap(["#c0392b", "#eeeeee", "#b8c4ce", "#2e8b57"])
    axes.imshow(grid, cmap=colours, vmin=0, vmax=3, aspect="auto")
    axes.set_xticks(range(len(models)), models, rotation=90, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_xticks([x - 0.5 for x in range(1, len(models))], minor=True)
    axes.set_yticks([y - 0.5 for y in range(1, len(names))], minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="both", length=0)
    axes.set_title("green: it holds · blue-grey: the model has no such site · red: it does not", fontsize=10)
    figure.savefig(path, dpi=110)
