"""The page of each rule of the library: from its file, from what the rewriter makes of it, and from a text about it.

The text is docs/making/methods/NAME.md: the paper's equation, and when to use the method. Nothing is trained, and no
weight of a model is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from docs.making.anatomy import anatomy, plan_of
from docs.making.markdown import code, page, table
from docs.making.picture import picture
from peftc.lang import Dimension, Option, Parameter, Rule, Section, by_default, counted_by, default_library

if TYPE_CHECKING:
    from peftc.match.plan import Plan

TEXTS = Path(__file__).with_name("methods")
FOLDER = "docs/methods"
BASE = "BERT base (12 layers, d 768)"


class MissingText(Exception):  # noqa: N818 - what is told to people is its message
    """A rule has no text of its own."""


def pages() -> Mapping[str, partial[str]]:
    """Path → what makes it, of every page and picture."""
    made = {f"{FOLDER}/README.md": partial(index)}
    for rule in default_library().rules():
        made[f"{FOLDER}/{rule.name}.md"] = partial(method, rule)
        made[f"{FOLDER}/{rule.name}.svg"] = partial(drawing, rule)
    return made


def left_over(root: Path) -> list[Path]:
    """Texts, pages and pictures of rules that are no more."""
    known = {"README", *default_library().names()}
    texts = root / TEXTS.relative_to(TEXTS.parents[2])
    return sorted(
        path for path in (*(root / FOLDER).glob("*.*"), *texts.glob("*.md")) if path.stem not in known
    )


def index() -> str:
    """The page of all methods."""
    return page(
        "Methods",
        "Every rule of the library, a page each. How they do on one real task: [league](../league.md). Which to take: "
        "[choosing](../choosing.md). Which go together: [compositions](../compositions.md).",
        table(
            ("method", "what it does", f"trainable in {BASE}", "merges"),
            (
                (
                    f"[{rule.name}]({rule.name}.md)",
                    rule.summary,
                    f"{count(rule.name):,}",
                    "yes" if merges(rule) else "no",
                )
                for rule in default_library().rules()
            ),
        ),
    )


def drawing(rule: Rule) -> str:
    """Its picture."""
    return picture(anatomy(rule.name))


def method(rule: Rule) -> str:
    """Its page. Raises MissingText."""
    text = TEXTS / f"{rule.name}.md"
    if not text.is_file():
        raise MissingText(
            f"the rule {rule.name} has no text: write {text.relative_to(TEXTS.parents[2])}, as CONTRIBUTING.md says"
        )
    paper = f" Paper: [{rule.paper.removeprefix('https://')}]({rule.paper})." if rule.paper else ""
    source = (default_library().folders[0] / f"{rule.name}.toml").read_text(encoding="utf-8").rstrip()
    return page(
        rule.name,
        rule.summary + paper,
        text.read_text(encoding="utf-8").strip(),
        "## Where it attaches",
        f"![where {rule.name} attaches]({rule.name}.svg)",
        "## Options",
        *options(rule),
        "## Cost",
        *cost(rule),
        "## Properties",
        table(("question", "answer"), properties(rule)),
        f"## The rule file\n\n[`rules/{rule.name}.toml`](../../rules/{rule.name}.toml):",
        f"```toml\n{source}\n```",
    )


def options(rule: Rule) -> Iterator[str]:
    """A table of them, and where the rule acts unless told."""
    if rule.options:
        rows = (
            (code(name), code(shown(option.default)), values(option), option.help)
            for name, option in rule.options.items()
        )
        yield table(("option", "default", "values", "meaning"), rows)
    else:
        yield "None."
    after = {"part": "the parts it goes to", None: "nothing"}.get(
        rule.shorthand, f"the option {code(rule.shorthand)}"
    )
    where = "; ".join(dict.fromkeys(map(place, by_default(rule))))
    yield f"In a spec, {code(rule.name + ':')} is followed by {after}. Unless told otherwise it goes to: {where}."


def place(section: Section) -> str:
    """Where a section goes by itself."""
    parts = ", ".join(map(code, section.match.part))
    return f"role {', '.join(map(code, section.match.role))}" + (f", parts {parts}" if parts else "")


def shown(value: object) -> str:
    """A value as a spec has it."""
    return {True: "true", False: "false"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def values(option: Option) -> str:
    """Which an option takes."""
    if option.choices:
        return ", ".join(map(code, option.choices))
    low = f"from {option.min:g}" if option.min is not None else ""
    high = f"to {option.max:g}" if option.max is not None else ""
    return f"{low} {high}".strip()


def cost(rule: Rule) -> Iterator[str]:
    """What trains at a site, as a formula; and in a model of an ordinary size, counted."""
    rows = [
        (
            code(name),
            code(" × ".join(size(each) for each in made.dimensions) or "1"),
            code(made.init),
            "a constant" if not made.trainable else "trains",
            "the model" if made.share == "model" else f"each {made.share}",
        )
        for section in by_default(rule)
        for name, made in section.parameters.items()
    ]
    if rows:
        yield table(("parameter", "numbers", "starts as", "", "one for"), rows)
    formula = " + ".join(
        " · ".join(size(each) for each in made.dimensions) or "1" for made in trained_at_a_site(rule)
    )
    if formula:
        yield f"Trainable at a site: {code(formula)}."
    found = plan_of("base", [rule.name])
    sites = len({(each.site.role, each.site.id) for each in found.applications})
    total, noun = sum(found.sizes.values()), "site" if sites == 1 else "sites"
    yield (
        f"In {BASE}, with its defaults and without the task's head, its plan has {sites:,} {noun} and trains "
        f"**{found.trainable_count:,}** numbers: {100 * found.trainable_count / total:.3g} % of {total:,}."
    )


def trained_at_a_site(rule: Rule) -> list[Parameter]:
    """The trainable parameters of the rule's first section that has any: its own at each site."""
    for section in by_default(rule):
        found = [made for made in section.parameters.values() if made.trainable and made.share == "site"]
        if found:
            return found
    return []


def size(dimension: Dimension) -> str:
    """How long an axis is."""
    return str(dimension.size)


@cache
def count(name: str) -> int:
    """Trainable numbers in the model by which costs are counted."""
    found: Plan = plan_of("base", [name])
    return found.trainable_count


def merges(rule: Rule) -> bool:
    """Whether all that it does is a change of weights."""
    changing = [section for section in by_default(rule) if section.rewrite]
    return all(section.merge for section in changing)


def properties(rule: Rule) -> Iterator[tuple[str, str]]:
    """What a person asks of a method first. The start is that which tests/rules/test_library.py finds of it."""
    from tests.rules.test_library import OTHER_AT_START

    other = OTHER_AT_START.get(rule.name)
    yield "Does it start as the model it is put into?", f"no: {other}" if other else "yes"
    if not any(section.rewrite for section in by_default(rule)):
        kept = any(section.quantise for section in by_default(rule))
        yield (
            "Can it be merged?",
            "it adds nothing to the graph"
            + ("; merging adds other rules to the weights in full precision" if kept else ""),
        )
    else:
        yield (
            "Can it be merged?",
            "yes: afterwards the model has its old class and speed"
            if merges(rule)
            else "no: it stays beside the model",
        )
    if folded := [name for section in by_default(rule) for name in section.fold]:
        yield (
            "Is it folded?",
            f"yes: for inference {', '.join(map(code, dict.fromkeys(folded)))} is computed once, not in every call",
        )
    rates = [
        f"{code(name)}"
        for section in by_default(rule)
        for name, made in section.parameters.items()
        if made.lr != 1.0
    ]
    yield "Learning rates of its own?", f"{', '.join(dict.fromkeys(rates))}, by an option" if rates else "no"
    terms = [name for section in rule.sections for name in section.loss]
    yield "A term in the loss?", f"{', '.join(map(code, dict.fromkeys(terms)))}" if terms else "no"
    policies = [each.policy for section in rule.sections for each in section.schedule.values()]
    yield (
        "A schedule while it trains?",
        f"{', '.join(map(code, dict.fromkeys(policies)))}" if policies else "no",
    )
    yield "Does it need trained adapters?", "yes: `saved`" if counted_by(rule) else "no"
