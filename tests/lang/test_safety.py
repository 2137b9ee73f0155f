"""Rules of strangers: whatever is in a file or a spec, reading it neither crashes, hangs nor runs anything.

The quick suite tries some hundred of them, `-m slow` ten thousand.
"""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peftc.errors import PeftcError
from peftc.lang import Bound, bind, check, load_rule, read_mapping, read_spec, read_text, write
from peftc.lang.source import Source
from tests.lang.wrong_rules import LIBRARY, SHIPPED, grown, mutated, specs

SECONDS = 2.0  # of processor time, which other programs on the machine do not use up
QUICK, MANY = 125, 2500
"""Cases of each of the four kinds."""

FORBIDDEN = (
    "exec",
    "import",
    "os.",
    "subprocess.",
    "socket.",
    "ctypes.",
    "shutil.",
    "marshal.",
    "pickle.",
    "code.",
)
"""Beginnings of what Python's audit tells when something runs, or reaches out of the process."""

watching: list[set[str]] = []
seen: list[str] = []


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if not watching:
        return
    if (
        event == "compile"
    ):  # ast.parse compiles to a tree, which runs nothing: its source is a text, no code object
        return
    if event in ("open", "os.scandir", "os.listdir") and str(arguments[0]) in watching[-1]:
        return
    if event == "open" or event.startswith(FORBIDDEN):
        seen.append(f"{event} {arguments!r:.200}")


sys.addaudithook(_hear)


@contextmanager
def nothing_runs(*may_open: Path) -> Iterator[None]:
    """Raise where something runs, opens another file than these and the library's, or takes longer than SECONDS."""

    def too_long(_signal: int, _frame: object) -> NoReturn:
        raise AssertionError(f"took longer than {SECONDS} s")

    before = signal.signal(signal.SIGVTALRM, too_long)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    (library,) = LIBRARY.folders
    own = [library, *(library / f"{name}.toml" for name in SHIPPED)]
    watching.append({str(path) for path in (*own, *may_open)})
    try:
        yield
    finally:
        watching.pop()
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    told, seen[:] = list(seen), []
    assert told == []


def harmless(read: Callable[[], object], *may_open: Path) -> None:
    """`read` gives a rule, or one of peftc's errors whose message can be shown."""
    with nothing_runs(*may_open):
        try:
            read()
        except PeftcError as error:
            told = str(error)
            assert told.replace("\n", "").replace("\t", "").isprintable()
            assert len(told) < 20_000


def read_and_write(text: str) -> None:
    rule = check(read_text(text, "rule.toml"), LIBRARY.rule)
    assert check(read_text(write(rule.content), "written.toml")) == rule


def read_stored(data: dict[str, Any]) -> None:
    rule = check(read_mapping(data, Source("rule.toml")), LIBRARY.rule)
    options = {name: option.default for name, option in rule.options.items()}
    Bound.from_flat({"rule": data, "options": options, "label": rule.name})


def read_bytes(raw: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rule.toml")
        path.write_bytes(raw)
        harmless(lambda: load_rule(path), path.resolve(), path)


def read_any_spec(text: str) -> None:
    named = [
        Path(piece) for piece in (text.partition(":")[0], text.partition("@")[0], text.partition("(")[0])
    ]
    harmless(lambda: read_spec(text))
    harmless(lambda: bind(text), *named)


KINDS: dict[str, tuple[st.SearchStrategy[Any], Callable[[Any], object]]] = {
    "mutated": (mutated(), lambda text: harmless(lambda: read_and_write(text))),
    "grown": (grown(), lambda data: harmless(lambda: read_stored(data))),
    "bytes": (
        st.one_of(st.binary(max_size=300), mutated().map(lambda text: text.encode(errors="replace"))),
        read_bytes,
    ),
    "spec": (specs(), read_any_spec),
}


def attempt(kind: str, count: int) -> None:
    """Try so many of a kind; the same ones in every run."""
    strategy, read = KINDS[kind]

    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def each(made: Any) -> None:
        read(made)

    each()


@pytest.mark.parametrize("kind", KINDS)
def test_some_hundred_wrong_rules(kind: str) -> None:
    attempt(kind, QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_ten_thousand_wrong_rules(kind: str) -> None:
    attempt(kind, MANY)


def turn_for_ever() -> NoReturn:
    while True:
        pass


def test_the_watch_hears() -> None:
    with pytest.raises(AssertionError, match="exec"), nothing_runs():
        exec("1")
    with pytest.raises(AssertionError, match="open"), nothing_runs():
        Path(__file__).open(encoding="utf-8").close()
    with pytest.raises(AssertionError, match="took longer"), nothing_runs():
        turn_for_ever()
