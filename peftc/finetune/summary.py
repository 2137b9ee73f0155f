"""The last thing a run prints: its figures side by side and where everything is.

Formats, measures nothing.
"""

from __future__ import annotations

from rich.console import Group
from rich.table import Table

from peftc.finetune.run import METRICS_FILE, PICTURE_FILE, Result
from peftc.finetune.trainer import ADAPTER_FOLDER


def summary(result: Result) -> Group:
    """A table of what was measured, and the paths of what was written."""
    metrics = result.metrics
    table = Table(box=None, header_style="bold", pad_edge=False)
    rules = " + ".join(metrics["rules"])
    if metrics["task"] == "causal-lm":
        table.add_column("model")
        table.add_column("perplexity", justify="right")
        if "perplexity_before" in metrics:
            table.add_row("before", f"{metrics['perplexity_before']:.2f}")
        if "perplexity_after" in metrics:
            table.add_row(rules, f"{metrics['perplexity_after']:.2f}")
    else:
        table.add_column("on held-out rows")
        table.add_column("accuracy", justify="right")
        for key, name in (("majority", "majority class"), ("frozen_probe", "frozen probe")):
            if key in metrics:
                table.add_row(name, f"{metrics[key]:.4f}")
        if "evaluation" in metrics:
            table.add_row(rules, f"{metrics['evaluation']['accuracy']:.4f}")
    training, parameters = metrics["training"], metrics["parameters"]
    share = parameters["trainable"] / parameters["total"]
    lines = [
        f"trained {parameters['trainable']:,} of {parameters['total']:,} parameters ({share:.2%}), "
        f"{training['steps']} steps in {training['seconds']:.0f} s",
        f"adapter  {result.out / ADAPTER_FOLDER}",
        f"figures  {result.out / METRICS_FILE}",
        f"picture  {result.out / PICTURE_FILE}",
    ]
    return Group("", table, *lines) if table.row_count else Group("", *lines)
