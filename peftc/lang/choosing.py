"""What of a rule the parts that a user names choose: in each of its sections, those of its roles. It knows no model.

A section that makes parameters places something, and goes where the user says. One that makes none, at other roles than
those that do, accompanies them, as norms do that train beside adapters: whatever part is named, it stays. Where it does
not even train anything, as what moves positions, it has no place of its own either and goes along with what acts.
"""

from __future__ import annotations

from dataclasses import dataclass

from peftc.lang.document import Rule, Section
from peftc.lang.draft import draft_of
from peftc.lang.roles import ROLES, SCOPES, accepts, known_words


@dataclass(frozen=True)
class PartSelector:
    """`decoder.q`: a part (or a group of parts, or a role's own name), in one scope or in any.

    `decoder` alone is what the rule goes to by itself, in that scope.
    """

    scope: str | None
    part: str
    text: str

    def accepts(self, role: str, part: str, scope: str | None = None) -> bool:
        """Whether it chooses a site of this role, part and scope."""
        inside = self.scope is None or self.scope == (scope or "")
        return inside and (not self.part or accepts(role, self.part, part))

    def within(self, rule: Rule, section: Section) -> tuple[PartSelector, ...]:
        """What it chooses in a section: nothing, itself, or parts of the section's own."""
        if accompanies(rule, section):
            around = sides(self.scope) if self.scope else (None,)
            return tuple(
                each for side in around for each in PartSelector(side, "", side or "").of_own(section)
            )
        if not self.part:
            return () if section.asked else self.of_own(section)
        if self.part not in known_words(section.match.role):
            return ()
        return self.of_own(section) if keeps_parts(rule, section) else (self,)

    def of_own(self, section: Section) -> tuple[PartSelector, ...]:
        """The section's own parts that it means, in its scope."""
        if not section.match.part:
            return (self,)
        own = [each for each in own_parts(section) if self.scope is None or each.scope in (None, self.scope)]
        return tuple(
            selector(".".join(filter(None, (self.scope or each.scope, part))))
            for each in own
            for part in common(section, each.part, self.part or each.part)
        )


def selector(text: str) -> PartSelector:
    """What a word of a spec, or of a rule's parts, chooses."""
    if text in SCOPES:
        return PartSelector(text, "", text)
    scope, dot, part = text.rpartition(".")
    return PartSelector(scope if dot else None, part, text)


def sides(scope: str) -> tuple[str, ...]:
    """The scopes of what stands around something in one: an attention across is in the decoder."""
    return (scope, "decoder") if scope == "cross" else (scope,)


def own_parts(section: Section) -> tuple[PartSelector, ...]:
    """The parts that a section is for unless the user names others; none means every part of its roles."""
    return tuple(selector(text) for text in section.match.part)


def common(section: Section, one: str, other: str) -> tuple[str, ...]:
    """What two words for parts of a section's roles have in common: one of them, or single parts."""
    if one == other:
        return (one,)
    parts = {
        part: (accepts(role, one, part), accepts(role, other, part))
        for role in section.match.role
        for part in ROLES[role].parts or (role,)
    }
    both = tuple(part for part, said in parts.items() if all(said))
    return (one,) if both == tuple(part for part, (of_one, _) in parts.items() if of_one) else both


def accompanies(rule: Rule, section: Section) -> bool:
    """Whether a section stays whatever part the user names: it makes nothing, and what others make is elsewhere."""
    if section.asked or section.parameters:
        return False
    making = {role for each in rule.sections if each.parameters for role in each.match.role}
    return bool(making) and (bool(section.quantise) or making.isdisjoint(section.match.role))


def goes_along(rule: Rule, section: Section) -> bool:
    """Whether a section has no place of its own, but acts where those do that it shares options with."""
    return accompanies(rule, section) and not (section.train or section.quantise)


def is_mixed(rule: Rule) -> bool:
    """Whether a rule places different things at different parts: then each keeps to its own."""
    placing = (each for each in rule.sections if not (each.asked or accompanies(rule, each)))
    return len({placement(rule, each) for each in placing}) > 1


def placement(rule: Rule, section: Section) -> tuple[frozenset[str], frozenset[str]]:
    """The roles and parts that tell what a section places from what others do."""
    roles = frozenset(section.match.role)
    stands_in = section.follows and roles == frozenset(rule.match.role)
    return roles, frozenset((rule if stands_in else section).match.part)


def keeps_parts(rule: Rule, section: Section) -> bool:
    """Whether the parts that the user names narrow a section's own; else they stand in their place."""
    return rule.shorthand != "part" and not section.asked and is_mixed(rule)


def words(rule: Rule) -> tuple[str, ...]:
    """Every word that can choose a part of a rule."""
    found: dict[str, None] = {}
    for section in rule.sections:
        if not accompanies(rule, section):
            known = known_words(section.match.role)
            found |= dict.fromkeys(word for word in known if selector(word).within(rule, section))
    return tuple(found)


def chosen_roles(rule: Rule) -> tuple[str, ...]:
    """The roles among whose sites the user's parts choose."""
    placing = (each for each in rule.sections if not accompanies(rule, each))
    return tuple(dict.fromkeys(role for section in placing for role in section.match.role))


def share_options(rule: Rule, one: Section, other: Section) -> bool:
    """Whether two sections read an option in common, or the first reads none."""
    of_one, of_other = (
        draft_of(rule, section).options_read() & rule.options.keys() for section in (one, other)
    )
    return not of_one or not of_one.isdisjoint(of_other)
