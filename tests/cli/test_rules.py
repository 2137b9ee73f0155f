"""The commands around rule files: what they print, what they refuse, and that none of them needs torch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from peftc.cli import main
from peftc.lang import GRAMMAR, GROUPS, PIECES, ROLES, SCOPES, bind, default_library, load_rule, read_text

Run = Callable[..., tuple[int, str, str]]
LIBRARY = default_library()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return int(caught.value.code or 0), printed.out, printed.err

    return call


@pytest.mark.parametrize("command", [(), ("plan",), ("finetune",)])
def test_how_rules_are_written_is_in_the_help(run: Run, command: tuple[str, ...]) -> None:
    code, out, _ = run(*command, "--help")
    assert code == 0
    words = [GRAMMAR, *(piece for piece, _ in PIECES), "path=GLOB", "rank=8", "alpha=16.0", "length=10"]
    words += [*GROUPS, *(f"{scope}." for scope in SCOPES), " ".join(ROLES["linear"].parts)]
    assert [word for word in words if word not in out] == []


@pytest.mark.parametrize(
    "command", [(), ("plan",), ("finetune",), ("predict",), ("rules",), ("check",), ("new",)]
)
def test_flags_take_no_value(run: Run, command: tuple[str, ...]) -> None:
    assert "<bool>" not in run(*command, "--help")[1]


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["rules"], ["rules", "lora"], ["check", "{lora}"], ["new", "mine", "--out", "{out}"]],
)
def test_no_torch_is_imported(arguments: list[str], tmp_path: Path) -> None:
    given = [each.format(lora=LIBRARY.folders[0] / "lora.toml", out=tmp_path) for each in arguments]
    code = (
        "import sys\nfrom peftc.cli import main\n"
        f"try: main({given!r})\nexcept SystemExit as done: assert not done.code, done.code\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_list_tells_the_defaults(run: Run) -> None:
    code, out, _ = run("rules")
    assert code == 0
    for rule in LIBRARY.rules():
        line = next(line for line in out.splitlines() if line.split()[:1] == [rule.name])
        assert rule.summary in line
        assert (" yes " in line) == rule.default
        assert rule.shorthand is None or f" {rule.shorthand} " in line


@pytest.mark.parametrize("name", LIBRARY.names())
def test_everything_of_one_rule(run: Run, name: str) -> None:
    rule = LIBRARY.rule(name)
    code, out, _ = run("rules", name)
    assert code == 0
    words = [rule.summary, rule.paper, *rule.match.part, *rule.match.role, "path=GLOB"]
    words += [word for option in rule.options.values() for word in (option.help, f"= {option.default}")]
    for section in rule.sections:
        words += [*section.parameters, *section.let.values(), *section.rewrite.values(), *section.match.where]
        words += [word for made in section.parameters.values() for word in (made.axes, made.init)]
    assert [word for word in words if word not in out] == []
    assert json.loads(run("rules", name, "--json")[1]) == rule.content


def test_an_unknown_rule(run: Run) -> None:
    code, _, err = run("rules", "lroa")
    assert code == 2
    assert "did you mean 'lora'?" in err


@pytest.mark.parametrize("name", LIBRARY.names())
def test_check_prints_the_flattened_rule(run: Run, name: str, tmp_path: Path) -> None:
    path = LIBRARY.folders[0] / f"{name}.toml"
    code, out, _ = run("check", path)
    assert code == 0
    assert read_text(out, "printed.toml") == load_rule(path)
    (told,) = json.loads(run("check", path, "--json")[1])
    assert told["proved"]
    assert told["rule"] == load_rule(path).content


def test_check_tells_each_error_and_goes_on(run: Run, tmp_path: Path) -> None:
    good = LIBRARY.folders[0] / "lora.toml"
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(good.read_text().replace("@ A @ B", "@ B @ A"))
    missing = tmp_path / "missing.toml"
    code, out, err = run("check", wrong, missing, good)
    assert code == 2
    assert err.splitlines() == [
        "error R031 wrong.toml, [let] delta, line 25",
        "  [* d_in] @ [d_out rank]: the right side has no axis 'd_in' to sum over",
        "    scale * (dropout(x, p=drop) @ B @ A)",
        "             ^^^^^^^^^^^^^^^^^^^^^^",
        f"error the rule file {missing} cannot be read: No such file or directory",
    ]
    assert "lora is a proved rule" in out
    code, out, _ = run("check", wrong, good, "--json")
    told = json.loads(out)
    assert code == 2
    assert [each["proved"] for each in told] == [False, True]
    assert told[0]["code"] == "R031"
    assert told[0]["where"] == "wrong.toml, [let] delta, line 25"


def test_what_is_new_holds_as_it_stands(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("new", "my_method", "--out", tmp_path / "rules", "--tests", tmp_path / "tests")
    assert code == 0
    rule, test = tmp_path / "rules" / "my_method.toml", tmp_path / "tests" / "test_my_method.py"
    assert str(rule) in out
    assert run("check", rule)[0] == 0
    assert load_rule(rule).name == "my_method"
    space: dict[str, Callable[[], None]] = {}
    exec(compile(test.read_text(), str(test), "exec"), {"__file__": str(test), "__name__": "test"}, space)
    assert "reference" in space
    assert '"../rules/my_method.toml"' in test.read_text().replace("\\\\", "/")


@pytest.mark.slow
def test_the_new_test_passes(run: Run, tmp_path: Path) -> None:
    run("new", "my_method", "--out", tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert "2 passed" in done.stdout


@pytest.mark.parametrize("there", ["mine.toml", "test_mine.py"])
def test_new_replaces_nothing(run: Run, tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("kept")
    code, _, err = run("new", "mine", "--out", tmp_path)
    assert code == 2
    assert "is there already" in err
    assert [path.name for path in tmp_path.iterdir()] == [there]
    assert (tmp_path / there).read_text() == "kept"


@pytest.mark.parametrize("name", ["Mine", "../mine", "", "a b", "m" * 50])
def test_new_wants_a_name(run: Run, tmp_path: Path, name: str) -> None:
    code, _, err = run("new", name, "--out", tmp_path)
    assert code == 2
    assert "is no name" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rule", ["lroa:q", "lora(rnak=4)", "lora(rank=no)", "lora:qq", "lora@x"])
def test_a_wrong_spec_is_told_before_anything_is_loaded(rule: str, tmp_path: Path) -> None:
    missing = str(tmp_path / "none")
    for arguments in (
        ["plan", missing, rule],
        ["finetune", "--model", missing, "--data", missing, "--out", missing, "--rules", rule],
    ):
        code = (
            f"import sys\nfrom peftc.cli import main\ntry: main({arguments!r})\n"
            "except SystemExit as done: assert done.code == 2, done.code\nassert 'torch' not in sys.modules"
        )
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        assert "error rule spec" in done.stderr


def test_the_specs_of_the_readme_are_right() -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    table = text[text.index("### How rules are written") : text.index("### Training")]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    specs = [spec for row in rows for spec in re.findall(r"`([^`]+)`", row) if not spec.startswith("./")]
    assert len(specs) >= 8
    for spec in specs:
        bind(spec)
