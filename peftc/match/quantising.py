"""Which weights a section can keep in fewer bits, and which it can train that are kept so. Chooses nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from peftc.analyse import Analysis, Site
from peftc.errors import MatchError
from peftc.lang import FORMATS, Bound, Packing, Section, packing_of, packing_problem
from peftc.match.plan import Application
from peftc.quantised import QuantisedWeight, quantised_in

PRODUCTS = frozenset({"linear", "head"})  # roles whose weight is read by products; the two can be one site
MIXED = frozenset({"tensor"})  # a role that every weight has besides its own


class Quantising:
    """What is known of the weights of one model."""

    def __init__(self, analysis: Analysis, root: nn.Module) -> None:
        self.analysis, self.root = analysis, root
        self.came: Mapping[str, QuantisedWeight] = quantised_in(root)
        self.parameters = dict(root.named_parameters())

    def packings(self, bound: Bound, section: Section) -> dict[str, Packing]:
        """How a section keeps weights, with a user's options.

        Raises:
            MatchError: an option has a value that the format cannot have.
        """
        found = {port: packing_of(told, bound.options) for port, told in section.quantise.items()}
        for packing in found.values():
            if problem := packing_problem(packing):
                raise MatchError(f"{bound.label}: {problem}")
        return found

    def reason_against(
        self,
        by: tuple[str, int],
        section: Section,
        site: Site,
        chosen: Sequence[Site],
        applications: Sequence[Application],
    ) -> str | None:
        """Why a section must leave a site alone because of weights in fewer bits, or None.

        Args:
            by: label of the rule, and number of the section.
            chosen: the sites that the section goes to otherwise; applications: what was planned before.
        """
        kept, others = {}, {}
        for each in applications:
            for port in each.quantises:
                kept[each.site.weights[port]] = each.rule
                if (each.rule, each.section) != by:
                    others[each.site.weights[port]] = each.rule
        for port in section.train:
            path = site.weights.get(port, "")
            if path in self.came:
                return f"its {port} came in {self.came[path].packing.text} and cannot be trained"
            if path in kept:
                return f"{kept[path]} keeps its {port} in fewer bits, so it cannot be trained"
        trained = {path: each.rule for each in applications for path in each.trains.values()}
        for port in section.quantise:
            path = site.weights.get(port, "")
            if path in trained:
                return f"{trained[path]} trains its {port}"
            if path in others:
                return f"{others[path]} keeps its {port} in fewer bits already"
            if reason := self.unfit(site, port, path, chosen):
                return reason
        return None

    def unfit(self, site: Site, port: str, path: str, chosen: Sequence[Site]) -> str | None:
        """Why the weight at a port of a site cannot be quantised, or None."""
        if not path:
            return f"it has no {port}"
        if path in self.came:
            return f"its {port} came in {self.came[path].packing.text} already"
        held = self.parameters.get(path)
        if held is None or held.dim() != 2 or not held.is_floating_point():
            return f"its {port} is no matrix of numbers with fractions"
        for other in self.analysis.sites:
            if path not in other.weights.values() or other.role in MIXED:
                continue
            if other.role not in PRODUCTS:
                return f"its {port} is tied to {other.id}, which reads it row by row"
            if other.role == site.role and other.id not in {each.id for each in chosen}:
                return f"its {port} also holds {other.id}, which is not chosen"
        return None


def of_quantised(
    came: Mapping[str, QuantisedWeight], applications: Sequence[Application], sizes: Mapping[str, int]
) -> Iterator[str]:
    """What a person should know of the weights that are in fewer bits: how many, and how large they are."""
    packed: dict[tuple[str, Packing], set[str]] = {}
    for path, held in came.items():
        packed.setdefault(("came", held.packing), set()).add(path)
    for each in applications:
        for port, packing in each.quantises.items():
            packed.setdefault((each.rule, packing), set()).add(each.site.weights[port])
    for (rule, packing), paths in packed.items():
        count = sum(sizes[path] for path in paths)
        size = f"{len(paths)} weights, {count:,} numbers in {megabytes(count * packing.bits)}"
        if rule == "came":
            note = FORMATS[packing.format].note
            yield f"{size}, came in {packing} and stay so{f'; {note}' if note else ''}"
        else:
            yield f"{rule} keeps {size} ({packing}, {packing.bits:.2f} bits each); they cannot be trained"


def megabytes(bits: float) -> str:
    """`12.3 MB` of a number of bits."""
    return f"{bits / 8e6:.1f} MB"
