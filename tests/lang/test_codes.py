"""Every code of a rule error, raised once, its message word for word in a golden file."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from peftc.errors import RuleError
from peftc.lang import CODES, Library, check, default_library, read_text
from tests.lang.test_define import CASES as FRAGMENTS
from tests.lang.test_use import CASES as COMPOSITES

LORA = (
    (default_library().folders[0] / "lora.toml").read_text().partition("\n[[also]]")[0]
)  # its first section
PREFIX = (default_library().folders[0] / "prefix.toml").read_text()
BITFIT = (default_library().folders[0] / "bitfit.toml").read_text()

Case = tuple[str, str, tuple[tuple[str, str], ...]]


def case(code: str, base: str, *changes: tuple[str, str]) -> Case:
    return code, base, changes


SCALE = 'scale = "alpha / rank"'
DELTA = 'delta = "scale * (dropout(x, p=drop) @ A @ B)"'
MADE = 'made = "B @ A"\ndelta = "scale * (dropout(x, p=drop) @ made)"'
PISSA = (default_library().folders[0] / "pissa.toml").read_text()
ADALORA = (default_library().folders[0] / "adalora.toml").read_text()
NF4 = (default_library().folders[0] / "nf4.toml").read_text()
PARTS = 'part   = ["q", "k", "v", "o", "gate", "up", "down", "other"]\n'
DEEP = f'scale = "{"-" * 40}rank"'
CHAIN = "\n".join([*(f'c{i} = "c{i + 1}"' for i in range(40)), 'c40 = "rank"', 'scale = "alpha / c0"'])
MANY = f'k = {{ default = "c0", choices = [{", ".join(f"{chr(34)}c{i}{chr(34)}" for i in range(60))}] }}'
HEAVY = "[let]\n" + "\n".join(f'w{i} = "{" + ".join(["activate(x, kind=k)"] * 20)}"' for i in range(4))
COUNTS = "[options]\ncount = { default = 2, min = 1 }\n"
GATE = 'g = { axes = "", init = "ones", gate = true }\n\n[let]'

CASES = [
    case("R001", LORA, ('name      = "lora"', f'name = "lora" # {"x" * 66000}')),
    case("R002", LORA, ('"lora"', '"lora')),
    case("R002", LORA, ("[let]", f"[let]\n{'a.' * 20000}b = 1")),
    case("R003", LORA, ("min = 1, ", "mni = 1, ")),
    case("R003", LORA, ("[merge]", "[marge]")),
    case("R003", PREFIX, ("\nrewrite =", "\nrewrit =")),
    case("R004", LORA, ('role   = "linear"', "")),
    case("R005", LORA, ("format    = 1", 'format    = "1"')),
    case("R005", LORA, ("min = 1, ", 'min = "1", ')),
    case("R005", LORA, ('name      = "lora"', 'name      = "../lora"')),
    case("R006", LORA, (SCALE, f'scale = "rank{" + rank" * 100}"')),
    case("R007", LORA, (SCALE, 'scale = "alpha / "')),
    case("R007", LORA, (SCALE, 'scale = "1if rank"')),
    case("R008", LORA, (SCALE, 'scale = "9 ** 9 ** 9"')),
    case("R008", LORA, (SCALE, "scale = \"__import__('os').system('id')\"")),
    case("R008", LORA, (SCALE, 'scale = "x.__class__"')),
    case("R008", LORA, (SCALE, 'scale = "(lambda: 1)()"')),
    case("R008", LORA, (SCALE, 'scale = "[i for i in x]"')),
    case("R008", LORA, (SCALE, 'scale = "rank < 3"')),
    case("R008", LORA, (SCALE, 'scale = "dropout(x, **y)"')),
    case("R008", LORA, ('"rank < d_in"', '"f(rank) < d_in"')),
    case("R009", LORA, (SCALE, DEEP)),
    case("R009", LORA, (SCALE, CHAIN)),
    case("R010", LORA, ('"rank d_in"', '"rank Rank"')),
    case("R010", LORA, ('x = "* d_in"', 'x = "d_in *"')),
    case("R010", LORA, ('"rank d_in"', '"* d_in"')),
    case("R011", LORA, ('"kaiming_uniform"', '"kaiming"')),
    case("R011", LORA, ('"kaiming_uniform"', '"normal(sdt=0.02)"')),
    case("R011", LORA, ('"kaiming_uniform"', '"normal"')),
    case("R011", LORA, ('"d_out rank"', '"d_out"'), ('"zeros"', '"orthogonal"')),
    case("R012", LORA, ("[let]", "[let]\n" + "\n".join(f'n{i} = "rank"' for i in range(500)))),
    case("R012", LORA, ("default = 8,", f"default = {'[' * 20}8{']' * 20},")),
    case("R012", LORA, ("default = 8,", f"default = 1{'0' * 50},")),
    case("R012", LORA, ("default = 16.0,", "default = nan,")),
    case("R012", LORA, ("default = 16.0,", "default = 1e400,")),
    case("R012", LORA, ("Width of", "\\u202eWidth of")),
    case("R012", LORA, ("Width of", "\\u001b[2JWidth of")),
    case("R012", LORA, ("scale =", f"{'s' * 60} =")),
    case("R012", LORA, ("[let]", HEAVY), ("[options]", f"[options]\n{MANY}"), ('"linear"', '["linear", "head"]')),
    case("R012", BITFIT, ("[train]", "[[also]]\nmatch = {role = 'norm'}\n" * 65 + "[train]")),
    case("R002", LORA, ("default = 8,", f"default = 1{'0' * 5000},")),
    case("R002", LORA, ("[let]", f"[let]\nx = {'[' * 5000}{']' * 5000}")),
    case("R002", LORA, ("[let]", "[parameters]")),
    case("R002", LORA, ('scale = "alpha / rank"', 'scale = "alpha / rank"\nscale = "alpha"')),
    case("R003", LORA, ('init = "zeros"', 'init = "zeros", start = "zeros"')),
    case("R004", LORA, (', init = "zeros"', "")),
    case("R004", LORA, ('name      = "lora"', "")),
    case("R005", LORA, ('["q", "v"]', "3")),
    case("R005", LORA, ('"kaiming_uniform"', "0.5")),
    case("R005", LORA, ("A = {", '"a-b" = {')),
    case("R005", LORA, ("default = 8,", "default = 2020-01-01,")),
    case("R005", LORA, ('init = "zeros"', 'init = "zeros", dtype = "int8"')),
    case("R005", LORA, ("[let]\n", 'let = "scale"\n[also]\n')),
    case("R007", LORA, (SCALE, 'scale = "alpha / r\u0430nk"')),
    case("R007", LORA, (SCALE, 'scale = "\uff41lpha / rank"')),
    case("R007", LORA, (SCALE, "scale = 'alpha \\ rank'")),
    case("R007", LORA, (SCALE, 'scale = ""')),
    case("R008", LORA, (SCALE, 'scale = "alpha if rank else 1"')),
    case("R008", LORA, (SCALE, 'scale = "rank % 2"')),
    case("R008", LORA, (SCALE, 'scale = "x[0]"')),
    case("R010", LORA, ('"rank d_in"', '"rank rank"')),
    case("R010", LORA, ('"rank d_in"', '"rank=0 d_in"')),
    case("R010", LORA, ('"rank d_in"', f'"{" ".join(f"a{i}=2" for i in range(13))}"')),
    case("R011", LORA, ('"kaiming_uniform"', '"normal(0.02)"')),
    case("R011", LORA, ('"kaiming_uniform"', '"normal(std=rank+1)"')),
    case("R020", LORA, ("A = {", "x = {")),
    case("R020", LORA, ("drop     =", "layers =")),
    case("R020", LORA, ("scale =", "a__b =")),
    case("R021", LORA, ("min = 1, ", "min = 1, max = 0, ")),
    case("R021", BITFIT, ('default = "auto"', 'default = "auto", min = 1')),
    case("R023", LORA, ('"linear"', '["linear", "linear"]')),
    case("R024", LORA, ('["q", "v"]', '["left.q"]')),
    case("R024", LORA, ('["q", "v"]', '["decoder.query"]')),
    case("R031", PREFIX, ('k_prefix = "P_k"', 'k_prefix = "concat(P_k, P_k, axis=\'heads\')"')),
    case("R031", LORA, (SCALE, 'scale = "alpha / \'rank\'"')),
    case("R020", LORA, ("drop     =", "d_in  =")),
    case("R020", LORA, ("A = {", "lambda = {")),
    case("R021", LORA, ("min = 1, ", "min = 9, ")),
    case("R021", BITFIT, ('default = "auto"', 'default = "sometimes"')),
    case("R022", LORA, ('shorthand = "part"', 'shorthand = "rnk"')),
    case("R023", LORA, ('"linear"', '"liner"')),
    case("R024", LORA, ('["q", "v"]', '["query"]')),
    case("R025", LORA, ('values = { x = "* d_in",', 'values = { z = "* d_in",')),
    case("R026", LORA, ('W = "d_out d_in"', 'W = "d_out"')),
    case("R027", LORA, ('"rank < d_in"', '"rank < batch"')),
    case("R027", PREFIX, ("'shift'\"", "'shfit'\"")),
    case("R027", PREFIX, ("positions == ", "positions >= ")),
    case("R027", PREFIX, ("positions == 'shift'", "positions == 3")),
    case("R028", LORA, ("p=drop", "p=drp")),
    case("R028", LORA, ('"kaiming_uniform"', '"normal(std=sigma)"')),
    case("R005", LORA, ('axes = "rank d_in",', 'axes = "rank d_in", share = "world",')),
    case("R028", LORA, ('axes = "rank d_in",', 'axes = "rank d_in", seed = "alpha",')),
    case("R029", LORA, ("dropout(", "dropuot(")),
    case("R030", LORA, ("p=drop", "q=drop")),
    case("R030", LORA, ("x, p=drop", "x, x, p=drop")),
    case("R030", LORA, (", p=drop", "")),
    case("R030", LORA, ("p=drop", "p=2")),
    case("R030", LORA, ("dropout(x,", "dropout(rank,")),
    case("R031", LORA, ("@ A @ B", "@ B @ A")),
    case("R031", LORA, ('"y + delta"', '"x + delta"')),
    case("R031", PREFIX, ('P_k = { axes = "kv_heads keys', 'P_k = { axes = "kv_heads tokens')),
    case("R031", PREFIX, ('k_prefix = "P_k"', 'k_prefix = "P_k + k"')),
    case("R032", LORA, ('"rank d_in"', '"rank d_im"')),
    case("R032", LORA, ("default = 8,    min = 1,", "default = 8,")),
    case("R033", PREFIX, ('P_k = { axes = "kv_heads keys=length', 'P_k = { axes = "kv_heads keys')),
    case("R034", LORA, ("[let]", 'C = { axes = "rank", init = "ones" }\n\n[let]')),
    case("R035", LORA, (SCALE, f'{SCALE}\nidle = "rank"')),
    case("R036", LORA, ("x, p=drop", "x, p=0.1")),
    case("R037", LORA, (SCALE, 'scale = "delta / rank"')),
    case("R038", LORA, ('y = "y + delta"', 'W = "W + delta"')),
    case("R039", LORA, ('"y + delta"', '"x @ A"')),
    case("R039", LORA, ('"y + delta"', '"rank"')),
    case("R040", PREFIX, ("mask = \"see", "# mask = \"see")),
    case("R040", PREFIX, ("see_prefix(mask, length", "see_prefix(mask, 3")),
    case("R074", PREFIX, ("[rewrite]", "[rewrite]\ny = \"concat(y, y, axis='queries')\"")),
    case("R041", LORA, ('W = "W + scale', 'x = "W + scale')),
    case("R041", LORA, ('[rewrite]\ny = "y + delta"', "")),
    case("R042", BITFIT, ("b = {", "y = {")),
    case("R043", BITFIT, ('"always"]', '"often"]')),
    case("R044", BITFIT, ('b = { insert = "insert" }', "")),
    case("R045", LORA, (SCALE, 'scale = "rank * alpha / (3 - 3)"')),
    case("R045", LORA, (SCALE, f'scale = "1{"0" * 30}"')),
    case("R046", LORA, ('[options]', 'before = "lora"\n\n[options]')),
    case("R011", LORA, ('"kaiming_uniform"', '"kaimng_uniform(slope=1)"')),
    case("R028", LORA, ('"kaiming_uniform"', '"length(V, axis=\'d_in\')"')),
    case("R005", LORA, ("format    = 1", "format    = 1\nfold = 3")),
    case("R065", LORA, ("format    = 1", 'format    = 1\nfold = "delt"')),
    case("R065", LORA, ("format    = 1", 'format    = 1\nfold = "A"')),
    case("R065", LORA, ("format    = 1", 'format    = 1\nfold = "delta"')),
    case("R065", LORA, ("format    = 1", 'format    = 1\nfold = "scale"')),
    case("R065", LORA, ("format    = 1", 'format    = 1\nfold = ["made", "made"]'), (DELTA, MADE)),
    case("R065", LORA, ("format    = 1", 'format    = 1\nfold = "made"'),
                       (DELTA, MADE.replace("B @ A", "W * sum(A, axis='rank')"))),
    case("R065", PREFIX, ("format    = 1", 'format    = 1\nfold = "k_prefix"'),
                         ('k_prefix = "P_k"', 'k_prefix = "P_k * keys"')),
    case("R060", LORA, ('"kaiming_uniform"', '"length(W, axis=\'d_out\')"')),
    case("R060", LORA, ('"kaiming_uniform"', '"rename(W, axis=\'d_out\', to=\'rank\')"')),
    case("R060", LORA, ('"kaiming_uniform"', '"2 * rank"')),
    case("R060", LORA, ('"kaiming_uniform"', '"rename(B, axis=\'d_out\', to=\'d_in\')"')),
    case("R060", LORA, ('init = "kaiming_uniform"', 'init = "svd_vh(W, rank)", share = "model"')),
    case("R060", LORA, ('init = "kaiming_uniform"', 'init = "svd_vh(W, rank)", seed = 3')),
    case("R060", PREFIX, ('init = "normal(std=0.02)"', 'init = "sum(sum(mask, axis=\'batch\'), axis=\'queries\')"')),
    case("R005", LORA, ('lr = "lr_ratio"', "lr = -1")),
    case("R064", LORA, ('lr = "lr_ratio"', 'lr = "lr_rato"')),
    case("R064", LORA, ("default = 1.0,  min = 0, ", "default = 1.0, ")),
    case("R064", LORA, ('lr = "lr_ratio"', 'lr = "lr_ratio", trainable = false')),
    case("R032", LORA, ('"rank d_in"', '"rank d_in=widest(d_in)"')),
    case("R010", LORA, ('"rank d_in"', '"rank d_in=smallest(d_in)"')),
    case("R010", PISSA, ('A0 = { axes = "rank d_in"', 'A0 = { axes = "rank rank"')),
    case("R011", LORA, ('"kaiming_uniform"', '"saved"')),
    case("R011", LORA, ('"kaiming_uniform"', '"saved(A, B)"')),
    case("R011", LORA, ('"kaiming_uniform"', '"saved(name=A)"')),
    case("R061", LORA, ('"d_out rank", init = "zeros"', '"d_out rank", init = "saved(B)"')),
    case("R061", LORA, ("[options]", COUNTS), ('"kaiming_uniform"', '"saved(A)"'),
                       ('"d_out rank", init = "zeros"', '"count d_out rank", init = "saved(B)"')),
    case("R060", LORA, ('init = "kaiming_uniform"', 'init = "saved(A)", seed = 3')),
    case("R063", ADALORA, ("* E @ B", "@ B) + sum(E, axis='rank'")),
    case("R063", ADALORA, ("@ A) * E @ B", "@ (A + E)) @ B")),
    case("R063", ADALORA, ("* E @ B", "* exp(E) @ B")),
    case("R063", ADALORA, ("* E @ B", "* softmax(E, axis='rank') @ B")),
    case("R063", ADALORA, ("* E @ B", "* activate(E, kind='sigmoid') @ B")),
    case("R063", ADALORA, ("* E @ B", "* while_training(E) @ B")),
    case("R063", ADALORA, ("* E @ B", "* E * mean(E, axis='rank') @ B")),
    case("R063", ADALORA, ("* E @ B", "* rename(rename(E, axis='rank', to='r'), axis='r', to='rank') @ B")),
    case("R063", ADALORA, ("B @ (E * A)", "B @ A")),
    case("R063", ADALORA, ('init = "zeros", gate = true', 'init = "zeros"'),
                          ('"rank d_in",  init = "normal(std=0.02)"', '"rank d_in",  init = "normal(std=0.02)", gate = true')),
    case("R063", ADALORA, ('"rank",       init = "zeros"', '"rank",       init = "zeros", share = "model"')),
    case("R063", LORA, ("[let]", GATE), ("y + delta", "y + delta + g * delta")),
    case("R063", LORA, ("[let]", GATE), ("y + delta", "g * y + delta")),
    case("R063", LORA, ("[let]", GATE), ("y + delta", "y + exp(g) * delta")),
    case("R063", LORA, ("[let]", GATE), ("y + delta", "g * delta - y")),
    case("R063", LORA, ("[let]", GATE), ("y + delta", "y + g * delta")),
    case("R063", LORA, ("[let]", GATE.replace('""', '"d_out"')), ("y + delta", "y + g * delta")),
    case("R003", ADALORA, ("weight =", "wieght =")),
    case("R003", ADALORA, ("settings  ", "stetings  ")),
    case("R004", ADALORA, ('policy     = "rank_budget"\n', "")),
    case("R005", ADALORA, ('weight = "gamma"', 'weight = "gamma", reduce = "max"')),
    case("R020", ADALORA, ("orthogonality =", "rows =")),
    case("R028", ADALORA, ('"(rows + columns) / 2"', '"(rows + cols) / 2"')),
    case("R057", ADALORA, ('"(rows + columns) / 2"', '"sum(mean(A, axis=\'d_in\') * E, axis=\'rank\') * A"')),
    case("R057", ADALORA, ('"(rows + columns) / 2"', '"columns * rows * delta"')),
    case("R057", ADALORA, ('weight = "gamma"', 'weight = "gama"')),
    case("R058", ADALORA, ('"rank_budget"', '"rank_budgets"')),
    case("R059", ADALORA, ('left = "B"', 'lift = "B"')),
    case("R059", ADALORA, ('left = "B"', 'left = "C"')),
    case("R059", ADALORA, ('left = "B", ', "")),
    case("R059", ADALORA, ('value = "E", left = "B"', 'value = "B", left = "E"')),
    case("R059", ADALORA, ('init = "zeros"', 'init = "zeros", trainable = false')),
    case("R059", ADALORA, ('every = "every"', 'evry = "every"')),
    case("R059", ADALORA, ('every = "every"', 'every = "evry"')),
    case("R059", ADALORA, ('every = "every"', "every = 0")),
    case("R059", ADALORA, ('target = "target", ', "")),
    case("R059", ADALORA, ('beta1 = "beta1"', 'beta1 = "alpha"')),
    case("R059", ADALORA, ("[schedule.budget]", '[schedule.twice]\npolicy = "rank_budget"\nparameters = '
                           '{ value = "E", left = "B", right = "A" }\nsettings = { target = 2 }\n\n[schedule.budget]')),
    case("R003", NF4, ("settings =", "stetings =")),
    case("R005", NF4, ('blocksize = "blocksize"', "blocksize = [64]")),
    case("R071", NF4, ("W = {", "x = {")),
    case("R071", NF4, ('"linear"\n', '"embedding"\n'), (PARTS, "")),
    case("R071", NF4, ("[quantise]", "[train]\nW = {}\n\n[quantise]")),
    case("R072", NF4, ('format = "nf4", s', 'format = "nf5", s')),
    case("R072", NF4, ('format = "nf4", s', 'format = "blocksize", s')),
    case("R072", NF4, ('format = "nf4", s', 'format = "compute", s')),
    case("R073", NF4, ('blocksize = "blocksize"', 'blocksiz = "blocksize"')),
    case("R073", NF4, ('blocksize = "blocksize"', 'blocksize = "block"')),
    case("R073", NF4, ('blocksize = "blocksize"', "blocksize = 100")),
    case("R073", NF4, ('blocksize = "blocksize"', "blocksize = true")),
    case("R073", NF4, ('double = "double"', "double = 1")),
    case("R073", NF4, ('double = "double"', 'double = "blocksize"')),
    case("R073", NF4, ("min = 32", "min = 1")),
    case("R073", NF4, ("min = 32, max = 4096, ", "")),
    case("R073", NF4, ('compute = "compute"', 'compute = "float8"')),
    case("R073", NF4, ('compute = "compute"', 'compute = "blocksize"')),
    case("R073", NF4, ('"float32", "float16"', '"float32", "float"')),
    case("R073", NF4, ('format = "nf4", s', 'format = "int8", s')),
    case("R036", NF4, (', compute = "compute"', "")),
]  # fmt: skip


def test_there_are_many() -> None:
    assert len({str(changes) for _, _, changes in CASES}) >= 60


def test_what_a_message_shows_can_be_printed() -> None:
    for _, base, changes in CASES:
        text = base
        for old, new in changes:
            text = text.replace(old, new)
        assert str(refusal(text)).replace("\n", "").isprintable()


def refusal(text: str) -> RuleError:
    with pytest.raises(RuleError) as caught:
        check(read_text(text, "rule.toml"))
    return caught.value


@pytest.mark.parametrize("index", range(len(CASES)), ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)])
def test_each_fault_has_its_code(index: int) -> None:
    code, text, changes = CASES[index]
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    assert refusal(text).code == code


def test_messages(golden: Callable[[str, str], None]) -> None:
    told = []
    for _, base, changes in CASES:
        text = base
        for old, new in changes:
            text = text.replace(old, new)
        shown = [f"- {old}\n+ {new}" if len(new) < 200 else f"- {old}\n+ …" for old, new in changes]
        told.append("\n".join([*shown, str(refusal(text))]))
    golden("lang/rule_errors.txt", "\n\n".join(told))


def test_every_code_is_raised_in_a_test() -> None:
    """Here, or beside what raises it."""
    cases = [*(code for code, _, _ in CASES), *(c for c, _ in COMPOSITES), *(c for c, _ in FRAGMENTS)]
    assert {*cases, "R047", "R049", "R053"} == set(CODES)


def test_a_rule_is_named_as_its_file(tmp_path: object) -> None:
    from pathlib import Path

    folder = Path(str(tmp_path))
    (folder / "other.toml").write_text(LORA)
    with pytest.raises(RuleError) as caught:
        Library((folder,)).rule("other")
    assert caught.value.code == "R047"
