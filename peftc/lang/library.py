"""Where rules are found by name: the folder of rule files that peftc ships. No rule holds a path."""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import peftc
from peftc.errors import UnknownRuleError, instead
from peftc.lang.check import check
from peftc.lang.codes import fault
from peftc.lang.document import RULE_NAME, Rule
from peftc.lang.reading import read_file


@dataclass(frozen=True)
class Library:
    """Folders of rule files; the first that has a name wins."""

    folders: tuple[Path, ...]

    def names(self) -> tuple[str, ...]:
        """The names of all rules, sorted."""
        return tuple(sorted({path.stem for folder in self.folders for path in folder.glob("*.toml")}))

    def rule(self, name: str, trail: tuple[str, ...] = ()) -> Rule:
        """The rule of this name, proved. Raises UnknownRuleError and RuleError.

        Args:
            trail: names of the composites that it is looked up for.
        """
        if re.fullmatch(RULE_NAME, name):
            for folder in self.folders:
                if (path := folder / f"{name}.toml").is_file():
                    return _named(load_rule(path, self, (*trail, name)), path)
        raise UnknownRuleError(f"there is no rule {name!r}", hint=instead(name, self.names()))

    def rules(self) -> tuple[Rule, ...]:
        """All rules, by name."""
        return tuple(self.rule(name) for name in self.names())


def load_rule(path: str | Path, library: Library | None = None, trail: tuple[str, ...] = ()) -> Rule:
    """The rule in a file, proved. Raises UnknownRuleError where there is no such file, and RuleError.

    Args:
        library: where rules that it uses are looked up; peftc's own if None.
        trail: names of the composites that it is loaded for, and its own in the library.
    """
    path = Path(path)
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):  # a pipe would be waited for
            raise UnknownRuleError(f"{path} is no file")
        changed = state.st_mtime_ns
        rule = _read(path.resolve(), changed)
    except OSError as error:
        raise UnknownRuleError(f"the rule file {path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise UnknownRuleError(f"{str(path)!r} can be no file") from None
    if rule.use:  # not kept: what it uses may change while it does not
        return check(rule, (library or default_library()).rule, trail)
    return _proved(path.resolve(), changed)


@lru_cache(maxsize=256)
def _read(path: Path, _changed: int) -> Rule:
    return read_file(path)


@lru_cache(maxsize=256)
def _proved(path: Path, changed: int) -> Rule:
    return check(_read(path, changed))


def _named(rule: Rule, path: Path) -> Rule:
    if rule.name != path.stem:
        message = f"the name is {rule.name!r}, the file's is {path.stem!r}"
        raise fault("R047", rule.source.place("name"), message)
    return rule


@lru_cache(maxsize=1)
def default_library() -> Library:
    """The rules that come with peftc: inside the installed package, or beside it in a checkout."""
    package = Path(peftc.__path__[0]).resolve()
    folders = (package / "rules_library", package.parent / "rules")
    return Library(tuple(folder for folder in folders if folder.is_dir())[:1])
