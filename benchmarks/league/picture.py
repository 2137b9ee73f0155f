"""Accuracy against trainable parameters, as a picture. Draws what the records say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.league.entrants import Setting
from benchmarks.league.records import KINDS, Standing, baselines, standings

COLOURS = dict(zip(KINDS, ("#444444", "#1f77b4", "#d95f02"), strict=True))
MARKERS = dict(zip(KINDS, "soD", strict=True))
LABEL = 8.0  # points


def draw(setting: Setting, path: Path) -> None:
    """Writes the picture."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    found = [each for each in standings(setting) if each.runs]
    base = baselines(setting)
    figure, axes = plt.subplots(figsize=(11, 7), layout="constrained")
    for kind in KINDS:
        members = [each for each in found if each.kind == kind]
        if not members:
            continue
        axes.errorbar(
            [each.figure("trainable") for each in members],
            [100 * each.accuracy for each in members],
            yerr=[100 * (each.spread or 0.0) for each in members],
            fmt=MARKERS[kind],
            color=COLOURS[kind],
            markersize=5,
            elinewidth=1,
            capsize=2,
            label=kind,
        )
    axes.axhline(100 * base["probe"], color="#888888", linestyle="--", linewidth=1)
    lowest = min(100 * base["probe"], *(100 * each.accuracy for each in found))
    axes.set_ylim(bottom=lowest - 1.2)
    axes.set_xscale("log")
    left, right = axes.get_xlim()
    axes.set_xlim(left, right * 3)
    axes.text(
        right * 2.9,
        100 * base["probe"] + 0.05,
        "frozen features, logistic regression",
        ha="right",
        fontsize=8,
    )
    axes.set_xlabel("trainable parameters, the head's among them (log)")
    axes.set_ylabel("accuracy on held-out reviews, %")
    seeds = sorted({len(each.runs) for each in found})
    axes.set_title(
        f"{setting.epochs:g} epoch; mean over seeds ({'–'.join(map(str, seeds))} each), bars: standard deviation over "
        f"seeds; always the majority class: {100 * base['majority']:.1f} %",
        fontsize=9,
    )
    axes.legend(fontsize=8, loc="lower right")
    axes.grid(alpha=0.25)
    label(figure, axes, found)
    figure.savefig(path, dpi=110)


def label(figure: Any, axes: Any, found: Sequence[Standing]) -> None:
    """A name beside each point, where no other name and no point is."""
    figure.canvas.draw()
    scale = figure.dpi / 72
    points = [axes.transData.transform((each.figure("trainable"), 100 * each.accuracy)) for each in found]
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in points]
    inverse = axes.transData.inverted()
    for each, (x, y) in zip(found, points, strict=True):
        width, height = 0.62 * LABEL * scale * len(each.name), 1.25 * LABEL * scale
        for dx, dy in places(width, height):
            box = (x + dx, y + dy, x + dx + width, y + dy + height)
            if not any(overlap(box, other) for other in taken):
                break
        taken.append(box)
        at = inverse.transform((box[0], box[1] + 0.2 * height))
        far = abs(dy + height / 2) > height
        axes.annotate(
            each.name,
            (each.figure("trainable"), 100 * each.accuracy),
            xytext=at,
            textcoords="data",
            fontsize=LABEL,
            color=COLOURS[each.kind],
            arrowprops={"arrowstyle": "-", "color": "#bbbbbb", "linewidth": 0.6} if far else None,
        )


def places(width: float, height: float) -> list[tuple[float, float]]:
    """Where a label's lower left corner can be from its point, the nearest first."""
    steps = [0.0, 1.0, -1.0, 2.0, -2.0, 3.0, -3.0, 4.0, -4.0, 5.0, -5.0]
    return [(dx, (step - 0.5) * height) for step in steps for dx in (8.0, -width - 8.0)]


def overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Whether two boxes (left, bottom, right, top) have an inside in common."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
