"""The page of spellings: the patterns that bring captured graphs to one form."""

from __future__ import annotations

from collections.abc import Iterator

from docs.making.language import keys_of, said_of
from docs.making.markdown import code, page, said, table
from peftc.capture.normalise import SPELLINGS
from peftc.capture.respelling import FOLDER
from peftc.capture.spelling import Spelled, SpellingData, Wild, read_spelling
from peftc.capture.words import TARGETS, WORDS


def spellings() -> str:
    """The page."""
    return page(
        "Spellings",
        "Models write one thing in many ways. After a capture, each file in `peftc/capture/spellings` finds the ways to "
        "write one thing, as patterns in the expressions of the [rule language](rule-language.md#expressions), and puts "
        "one call in their place: so rules and analyses see one spelling. Each file is a pass, `recognise_` and its "
        "name, which `peftc graph MODEL --pass=-recognise_…` turns off; `--times` tells what was nearly found, and why "
        "it was not.",
        f"```toml\n{(FOLDER / 'attention.toml').read_text(encoding='utf-8').rstrip()}\n```",
        "Axes have names, so a pattern has no transpose: `q @ k` sums over the axis that both name, and the matcher looks "
        "through whatever puts a tensor's axes in that order. Sums and products match from both sides, a number as a "
        "factor also as a quotient or as several factors in a row, `addmm` as a sum. What a pattern covers must be read "
        "by nothing else, or it would be computed twice.",
        "## Files",
        table(("file", "finds", "equal"), (_row(name) for name in SPELLINGS)),
        "## Keys",
        "### The file",
        keys_of(SpellingData.model_fields),
        "### `[wild.NAME]`",
        said_of(Wild),
        keys_of(Wild.model_fields),
        "### `[[spelling]]`",
        said_of(Spelled),
        keys_of(Spelled.model_fields),
        "## Words of patterns",
        table(("word", "axes", "meaning"), _words()),
        "## Words of replacements",
        table(
            ("word", "axes", "meaning"),
            ((code(each.call), said(each.axes), each.doc) for each in TARGETS.values()),
        ),
    )


def _row(name: str) -> tuple[str, str, str]:
    data = read_spelling(FOLDER / f"{name}.toml").data
    return code(name), data.summary, data.law


def _words() -> Iterator[tuple[str, str, str]]:
    for name in sorted(WORDS):
        yield code(WORDS[name].call), said(WORDS[name].axes), WORDS[name].doc
