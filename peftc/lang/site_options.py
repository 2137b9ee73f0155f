"""Options that differ from site to site: globs over sites, each with values of its own. Knows no site."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from peftc.lang.axes import Constant
from peftc.lang.condition import conditions
from peftc.lang.document import Rule


@dataclass(frozen=True)
class SiteOptions:
    """Values of options at the sites that a glob matches: by module path, or with a colon by site id.

    `*.layers.0.*` is every site below that layer, `*.attn:q` the q of every attention.
    """

    glob: str
    options: Mapping[str, Constant] = field(hash=False)

    def accepts(self, path: str, site: str) -> bool:
        """Whether it is for a site of this module path and id."""
        return fnmatch.fnmatchcase(site if ":" in self.glob else path, self.glob)


def options_at(given: Iterable[SiteOptions], path: str, site: str) -> dict[str, Constant]:
    """The values that hold at one site. Where several globs match, the later ones win, option by option."""
    found: dict[str, Constant] = {}
    for each in given:
        if each.accepts(path, site):
            found |= each.options
    return found


def one_for_all(rule: Rule) -> dict[str, str]:
    """The options that cannot differ from site to site, each with what reads it for all sites at once."""
    found: dict[str, str] = {}
    for section in rule.sections:
        for condition in conditions(rule, section):
            if condition.of_options:
                found |= dict.fromkeys(condition.expression.names, "a condition on the whole section")
        for name, term in section.loss.items():
            found |= {str(term.weight): f"the weight of the loss {name}"}
        for name, told in section.schedule.items():
            found |= dict.fromkeys(map(str, told.settings.values()), f"the schedule {name}")
    return {name: reader for name, reader in found.items() if name in rule.options}
