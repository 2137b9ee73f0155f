"""The JSON Schema of rule files, for editors: what the records of `document` say, with the words of the tables.

It accepts every rule that is proved; what only the proof can see (axes, expressions) it lets through.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from peftc.lang.document import Rule
from peftc.lang.initial import LAWS
from peftc.lang.roles import ROLES, SCOPES, known_words

Schema = dict[str, Any]

EDITS: Mapping[str, frozenset[str]] = {
    "values": frozenset({"operand", "result", "value", "weight"}),
    "rewrite": frozenset({"operand", "result"}),
    "merge": frozenset({"weight"}),
    "train": frozenset({"weight"}),
}
"""The tables whose keys are ports, and of which kinds."""


def rule_schema() -> Schema:
    """The schema of a rule file, draft 7."""
    schema = _plain(Rule.model_json_schema(mode="validation"))
    holders = [schema, *schema["$defs"].values()]
    for key, kinds in EDITS.items():
        for table in _properties(holders, key):
            if "patternProperties" in table:
                _name_ports(table, kinds)
    words = known_words(tuple(ROLES))
    for role in _properties(holders, "role"):
        _spell(role, {"enum": list(ROLES)})
    for part in _properties(holders, "part"):
        scoped = f"^({'|'.join(SCOPES)})\\.({'|'.join(words)})$"
        _spell(part, {"anyOf": [{"enum": list(words)}, {"type": "string", "pattern": scoped}]})
    for law in _properties(holders, "init"):
        # Or an expression: it has a sign or a bracket, or is the name of a parameter, which is mostly written large.
        law["pattern"] = f"^\\s*({'|'.join(LAWS)})\\b|[-+*/@(]|^\\s*[A-Z]"
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "A peftc rule",
        **schema,
    }


def _properties(holders: Iterable[Schema], key: str) -> list[Schema]:
    return [holder["properties"][key] for holder in holders if key in holder.get("properties", {})]


def _name_ports(table: Schema, kinds: frozenset[str]) -> None:
    """The table's keys are the ports of these kinds, each with what it is at which role."""
    (held,) = table.pop("patternProperties").values()
    docs: dict[str, list[str]] = {}
    for role in ROLES.values():
        for port in role.ports.values():
            if port.kind in kinds:
                docs.setdefault(port.name, []).append(f"{role.name}: {port.doc}")
    table["properties"] = {name: {**held, "description": " ".join(said)} for name, said in docs.items()}


def _spell(texts: Schema, word: Schema) -> None:
    """A text or a list of texts becomes such a word or a list of them."""
    texts.pop("anyOf", None)
    texts.update(anyOf=[word, {"type": "array", "items": word}])


def _plain(node: Any) -> Any:
    """pydantic's schema in the words that every draft has, and without what TOML cannot say (null)."""
    if isinstance(node, list):
        return [_plain(each) for each in node if each != {"type": "null"}]
    if not isinstance(node, dict):
        return node
    plain = {key: _plain(value) for key, value in node.items() if not _is_noise(key, value)}
    if len(plain.get("anyOf", ())) == 1:
        plain |= plain.pop("anyOf")[0]
    if "const" in plain:
        plain["enum"] = [plain.pop("const")]
    if "patternProperties" in plain:
        plain["additionalProperties"] = False
    if "$ref" in plain and len(plain) > 1:  # before draft 2019 a $ref hides its neighbours
        plain["allOf"] = [{"$ref": plain.pop("$ref")}]
    return plain


def _is_noise(key: str, value: object) -> bool:
    return (key == "title" and isinstance(value, str)) or (key == "default" and value is None)
