"""The table of rule error codes, and the one function that makes a rule error. A code keeps its meaning."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from peftc.errors import RuleCheckError, RuleError, RuleSyntaxError, carets
from peftc.lang.source import Place

WIDTH = 120
"""Characters of a quoted text that are shown."""

CODES: Mapping[str, str] = MappingProxyType(
    {
        # reading: RuleSyntaxError
        "R001": "The file is longer than 64 KiB.",
        "R002": "The file is not TOML.",
        "R003": "A key that the format does not know.",
        "R004": "A key that must be there is missing.",
        "R005": "A key's value is of the wrong type or form.",
        "R006": "A text, such as an expression, is longer than 500 characters.",
        "R007": "An expression cannot be read.",
        "R008": "An expression uses something outside the rule language.",
        "R009": "An expression is nested too deep, or bindings need each other too deep.",
        "R010": "A text of axes cannot be read.",
        "R011": "An initial law cannot be read.",
        "R012": "The rule is larger than the format allows, or holds what cannot be printed.",
        # proving: RuleCheckError
        "R020": "One name stands for two things.",
        "R021": "An option's default, range and choices do not go together.",
        "R022": "The shorthand is neither `part` nor an option.",
        "R023": "No role has this name.",
        "R024": "The role has no such part.",
        "R025": "The role has no such port.",
        "R026": "The axes given to a value do not fit its port.",
        "R027": "A condition uses what is not known when sites are matched.",
        "R028": "A name that stands for nothing.",
        "R029": "No operation has this name.",
        "R030": "An operation is called with the wrong arguments.",
        "R031": "Two values do not meet: their axes differ.",
        "R032": "A parameter's axis has no size.",
        "R033": "A parameter's size changes from call to call.",
        "R034": "A parameter is never used.",
        "R035": "A binding is never used.",
        "R036": "An option is never used.",
        "R037": "Bindings need each other in a circle.",
        "R038": "A port that cannot be rewritten.",
        "R039": "A new value has not its port's axes.",
        "R040": "A rewrite changes an axis's length at one port and not at another.",
        "R041": "A merge that is no change of a weight.",
        "R042": "A port that cannot be trained.",
        "R043": "`insert` does not name an option of never, auto and always.",
        "R044": "A section that does nothing.",
        "R045": "A number cannot be computed.",
        "R046": "A rule is ordered against itself.",
        "R047": "A rule in the library has another name than its file.",
        # composites and fragments: RuleCheckError
        "R048": "A rule that is used is not in the library.",
        "R049": "Rules use each other in a circle.",
        "R050": "A composite is too large.",
        "R051": "An option of a used rule cannot have this value.",
        "R052": "An override changes what the used rule does not have.",
        "R053": "Used rules exclude each other, or stand in the wrong order.",
        "R054": "Fragments call each other in a circle.",
        "R055": "A fragment is never called.",
        "R056": "A merge or a term of the loss makes parameters of its own.",
        # initial values and training: RuleCheckError
        "R057": "A term of the loss is no single number, or depends on a call.",
        "R058": "No policy has this name.",
        "R059": "A schedule does not fit its policy.",
        "R060": "An initial value does not fit its parameter.",
        # saved adapters: RuleCheckError
        "R061": "What is read of saved adapters cannot be stacked.",
        "R062": "What a used rule adds to its port cannot be told.",
        # growing inputs: RuleCheckError
        "R074": "A result gets longer where nothing makes room for it.",
        # gates: RuleCheckError
        "R063": "Something is left where a gate is 0.",
        "R064": "A factor on the learning rate that is none.",
        # what is computed once: RuleCheckError
        "R065": "A binding that cannot be folded.",
        # quantised weights: RuleCheckError
        "R071": "A weight that cannot be quantised.",
        "R072": "No number format has this name.",
        "R073": "The settings of a quantised weight do not fit its format.",
    }
)


def fault(
    code: str,
    place: Place,
    message: str,
    *,
    text: str | None = None,
    span: tuple[int, int] | None = None,
    hint: str | None = None,
) -> RuleError:
    """A rule error of this code at this place, pointing at `span` of `text`, or of the place's whole line.

    Without a span it points at what the message quotes, else at the place's key, else at all of the text.
    """
    kind = RuleSyntaxError if code < "R020" else RuleCheckError
    assert code in CODES, code
    if text and text.strip():
        shown, span = place.written(text, span)
    else:
        shown = place.said
    if span is None:
        span = _span(shown, (*re.findall(r"'([^']+)'", message), *([place.key] if text is None else ())))
    detail = _cut(shown, *span) if shown.strip() else ()
    return kind(message, code=code, where=str(place), detail=detail, hint=hint)


def _span(text: str, words: tuple[str, ...]) -> tuple[int, int]:
    """Where the first of the words stands in the text as a whole, or all of the text."""
    for word in filter(None, words):
        if found := re.search(rf"(?<![A-Za-z0-9_]){re.escape(word)}(?![A-Za-z0-9_])", text):
            return found.span()
    return len(text) - len(text.lstrip()), len(text.rstrip())


def _cut(text: str, start: int, stop: int) -> tuple[str, str]:
    """The text with carets below, without what is far from them."""
    first = max(0, start - WIDTH // 2) if len(text) > WIDTH else 0
    kept = text[first : first + WIDTH]
    line = ("…" if first else "") + kept + ("…" if first + WIDTH < len(text) else "")
    shift = (1 if first else 0) - first
    return carets(line, start + shift, min(stop + shift, len(line)))
