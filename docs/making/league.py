"""The page of the league, from its records: `benchmarks/methods.py` makes them and the picture."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.league.entrants import TIMES, Setting
from benchmarks.league.records import (
    KINDS,
    REFERENCE,
    Standing,
    baselines,
    difference,
    standings,
    times,
)
from docs.making.markdown import code, page, table

SETTING = Setting()
ABSENT = "–"


def league() -> str:
    """The page."""
    found = standings(SETTING)
    ran = [each for each in found if each.runs]
    if not ran:
        return page("The league of methods", "No run is recorded: `python benchmarks/methods.py`.")
    seeds = sorted({seed for each in ran for seed in each.runs})
    held_out = next(iter(ran[0].runs.values()))["held_out_rows"]
    base = baselines(SETTING)
    noise = 100 * (base["probe"] * (1 - base["probe"]) / held_out) ** 0.5
    return page(
        "The league of methods",
        "Every rule of the library on one real task, made by `python benchmarks/methods.py` (records in "
        f"`benchmarks/results/methods/{SETTING.name}/`): all-MiniLM-L6-v2 (BERT, 6 layers, d 384, 22.7 million "
        "parameters) with a mean-pooled head, which trains in every row, on reviews of films as fresh or rotten: "
        f"{base['training_rows']:,} to train on, {held_out:,} held out, of films that training never saw. "
        f"{SETTING.epochs:g} epoch, batch {SETTING.batch_size}, AdamW, linear decay, no warm-up, float32 on a CPU. "
        f"Seeds: {', '.join(map(str, seeds))}.",
        "![accuracy against trainable parameters](league.png)",
        f"Always the majority class: {percent(base['majority'])}. Logistic regression on the frozen model's features: "
        f"{percent(base['probe'])}.",
        table(headings(), (row(each, found) for each in found)),
        "## How to read it",
        "\n".join(f"- {line}" for line in reading(noise)),
        "## Learning rates",
        "One for each method, from its paper or by a stated choice; none was tuned here, so a method can be better "
        "than its row.",
        table(
            ("method", "rules", "learning rate", "from"),
            (
                (
                    each.name,
                    " ".join(map(code, each.entrant.rules)),
                    f"{each.entrant.learning_rate:g}",
                    each.entrant.why,
                )
                for each in sorted(found, key=lambda each: each.name)
            ),
        ),
    )


def headings() -> tuple[str, ...]:
    """Of the table."""
    return (
        "method",
        "accuracy %",
        "seeds",
        f"against `{REFERENCE}`, points",
        "trainable",
        "adapter, KB",
        "memory, MB",
        "step time",
        "merges",
    )


def row(each: Standing, found: tuple[Standing, ...]) -> Iterator[str]:
    """One method."""
    yield f"[{each.name}](methods/{each.name}.md)" + (" †" if each.older else "")
    if not each.runs:
        yield from (ABSENT for _ in headings()[1:])
        return
    reference = next(other for other in found if other.name == REFERENCE)
    compared = difference(each, reference)
    spread = "" if each.spread is None else f" ± {100 * each.spread:.2f}"
    timed = times().get(each.name)
    yield f"{percent(each.accuracy)}{spread}"
    yield str(len(each.runs))
    yield ABSENT if compared is None else f"{100 * compared[0]:+.2f} ± {100 * compared[1]:.2f}"
    yield f"{each.figure('trainable'):,.0f}"
    yield f"{each.figure('adapter_bytes') / 1000:,.0f}"
    yield f"{each.memory:,.0f}"
    yield ABSENT if timed is None else f"{timed['median']:.2f} ({timed['low']:.2f}–{timed['high']:.2f})"
    yield {KINDS[0]: "itself", KINDS[1]: "yes", KINDS[2]: "no"}[each.kind]


def reading(noise: float) -> Iterator[str]:
    """What the columns mean, and how far they are to be trusted."""
    yield (
        "**accuracy**: on the held-out reviews, the mean over seeds ± its standard deviation over seeds (what another "
        "seed changes: start, order of the data, dropout). Another sample of reviews would move every row together by "
        f"about ±{noise:.1f} points."
    )
    yield (
        f"**against `{REFERENCE}`**: mean over the seeds that both have, ± the standard error over held-out reviews, "
        "each paired with itself. Less than twice its error is no difference; and of so many rows one in twenty is "
        "beyond that by chance."
    )
    yield "**trainable**: with the head's 770. **adapter**: its folder on disk."
    yield (
        "**memory**: peak of the process while it trains, less what it held with the model in it before the first "
        "step: gradients, moments of the optimizer, activations."
    )
    if times():
        yield (
            f"**step time**: over that of the head alone, which trains with the whole model frozen; median "
            f"(quartiles) of interleaved rounds in one process (`{TIMES.name}`)."
        )
    else:
        yield "**step time**: not measured yet: `python benchmarks/methods.py --time`, on a quiet machine."
    yield "**merges**: whether the trained model can be one of the original class and speed."
    yield "†: a record is of an older rule file or learning rate; `--again` runs it anew."


def percent(share: float) -> str:
    """With two digits behind the point."""
    return f"{100 * share:.2f}"
