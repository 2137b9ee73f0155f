"""Draws the loss curve of a run as one PNG. Reads Trainer's log history and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Point = tuple[float, float]


def smoothed(points: Sequence[Point], weight: float) -> list[Point]:
    """An exponential mean of the values, free of the bias that a start at zero gives."""
    result: list[Point] = []
    mean = norm = 0.0
    for step, value in points:
        mean = weight * mean + (1 - weight) * value
        norm = weight * norm + (1 - weight)
        result.append((step, mean / norm))
    return result


def points_of(history: Sequence[Mapping[str, Any]], key: str) -> list[Point]:
    """(step, value) of each log entry that has the key."""
    return [(float(entry["step"]), float(entry[key])) for entry in history if key in entry]


def draw_loss(history: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Training loss (each logged step pale, smoothed strong), evaluation loss as points, accuracy on its own
    axis.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    training, evaluation = points_of(history, "loss"), points_of(history, "eval_loss")
    accuracy = points_of(history, "eval_accuracy")
    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if training:
        axes.plot(*zip(*training, strict=True), color="#9ecae1", linewidth=0.8, label="training, each log")
        weight = max(0.0, 1 - 8 / len(training))
        axes.plot(
            *zip(*smoothed(training, weight), strict=True),
            color="#08519c",
            linewidth=2,
            label="training, smoothed",
        )
    if evaluation:
        axes.plot(*zip(*evaluation, strict=True), "o--", color="#d94801", markersize=6, label="held out")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (cross-entropy, nats)")
    axes.set_title(title, fontsize=11)
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for step, value in accuracy:
        loss = dict(evaluation).get(step)
        if loss is not None:
            axes.annotate(
                f"{value:.1%} right",
                (step, loss),
                textcoords="offset points",
                xytext=(-8, -14),
                ha="right",
                fontsize=9,
                bbox={"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none", "alpha": 0.85},
            )
    axes.legend(frameon=False)
    figure.savefig(path)
