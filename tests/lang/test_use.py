"""Composites: what they are flattened to, and every way they are refused, word for word."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from peftc.errors import RuleError, UnknownOptionError
from peftc.lang import (
    Bound,
    Library,
    Rule,
    bind,
    check,
    default_library,
    flatten,
    is_on,
    load_rule,
    read_text,
)

SHIPPED = default_library()

HEAD = 'format = 1\nname = "both"\nsummary = "Two rules at once."\n'
LORA = '\n[[use]]\nrule = "lora"\n'
PREFIX = '\n[[use]]\nrule = "prefix"\n'
BOTTLENECK = '\n[[use]]\nrule = "bottleneck"\n'
CHOICE = '[options]\nkind = { default = "a", choices = ["a", "b"] }\n'
COUNT = "[options]\ncount = { default = 2, min = 1 }\n"


@pytest.fixture
def library(tmp_path: Path) -> Library:
    """The shipped rules, and those that a test writes."""
    return Library((tmp_path, *SHIPPED.folders))


def composite(text: str, find: Library = SHIPPED) -> Rule:
    return check(read_text(HEAD + text, "both.toml"), find.rule)


FLAT = """
format = 1
name = "both"
summary = "Two rules at once."

[options]
lora_rank     = { default = 4, min = 1, help = "Width of the update." }
lora_drop     = { default = 0.0, min = 0, max = 1, help = "Dropout on the update's input; ids of embeddings have none." }
lora_lr_ratio = { default = 1.0, min = 0, help = "Learning rate of B over that of A; LoRA+ takes 16." }
prefix_length = { default = 10, min = 1, help = "How many keys are put in front." }
prefix_drop   = { default = 0.0, min = 0, max = 1, help = "Dropout on the keys and values put in front." }
prefix_visible.default = "always"
prefix_visible.choices = ["always", "window"]
prefix_visible.help    = "Under a sliding window. always: every query sees the prefix; window: it falls out of it as tokens do."
prefix_init.default = "random"
prefix_init.choices = ["random", "text"]
prefix_init.help    = "text: the keys and values of the first tokens of data, of its first row, as the model makes them."
prefix_positions.default = "keep"
prefix_positions.choices = ["keep", "shift"]
prefix_positions.help    = "keep: tokens keep their places; shift: the prefix takes the first ones."

[match]
role   = "linear"
part   = "o"
values = { x = "batch seq d_in", W = "d_out d_in", y = "batch seq d_out" }
where  = ["lora_rank < d_in", "lora_rank < d_out"]

[parameters]
lora_A = { axes = "rank=lora_rank d_in",  init = "kaiming_uniform" }
lora_B = { axes = "d_out rank=lora_rank", init = "zeros", lr = "lora_lr_ratio" }
lora_s = { axes = "d_in", init = "ones" }

[let]
lora_scale = "mean(x @ lora_s, axis='seq')"
lora_delta = "tanh(lora_delta_old)"
lora_delta_old = "lora_scale * (dropout(x, p=lora_drop) @ lora_A @ lora_B)"

[rewrite]
y = "y + lora_delta"

[[also]]
match.role        = "attention"
match.values.k    = "batch kv_heads keys head_dim"
match.values.v    = "batch kv_heads keys value_dim"
match.values.mask = "batch heads queries keys"
match.where       = "prefix_init == 'random'"
[also.parameters]
prefix_P_k = { axes = "kv_heads keys=prefix_length head_dim", init = "normal(std=0.02)" }
prefix_P_v = { axes = "kv_heads keys=prefix_length value_dim", init = "normal(std=0.02)" }
[also.let]
prefix_k_prefix = "prefix_P_k"
prefix_v_prefix = "prefix_P_v"
[also.rewrite]
k    = "concat(dropout(repeat(prefix_k_prefix, k, axis='batch'), p=prefix_drop), k, axis='keys')"
v    = "concat(dropout(repeat(prefix_v_prefix, v, axis='batch'), p=prefix_drop), v, axis='keys')"
mask = "see_prefix(mask, prefix_length, visible=prefix_visible)"

[[also]]
follows = true
match.role        = "attention"
match.values.k    = "batch kv_heads keys head_dim"
match.values.v    = "batch kv_heads keys value_dim"
match.values.mask = "batch heads queries keys"
match.where       = "prefix_init == 'text'"
[also.parameters]
prefix_P_k = { axes = "kv_heads keys=prefix_length head_dim", init = "mean(first(first(k, prefix_length, axis='keys'), 1, axis='batch'), axis='batch')" }
prefix_P_v = { axes = "kv_heads keys=prefix_length value_dim", init = "mean(first(first(v, prefix_length, axis='keys'), 1, axis='batch'), axis='batch')" }
[also.let]
prefix_k_prefix = "prefix_P_k"
prefix_v_prefix = "prefix_P_v"
[also.rewrite]
k    = "concat(dropout(repeat(prefix_k_prefix, k, axis='batch'), p=prefix_drop), k, axis='keys')"
v    = "concat(dropout(repeat(prefix_v_prefix, v, axis='batch'), p=prefix_drop), v, axis='keys')"
mask = "see_prefix(mask, prefix_length, visible=prefix_visible)"

[[also]]
match   = { role = "positions", values = { p = "* seq" }, where = ["prefix_positions == 'shift'"] }
rewrite = { p = "p + prefix_length" }
"""  # noqa: E501 - an expression of a rule is one line


def test_a_composite_is_its_flattened_rule() -> None:
    rule = composite(f"""{LORA}
        options    = {{ rank = 4 }}
        match      = {{ part = "o", values = {{ x = "batch seq d_in", y = "batch seq d_out" }} }}
        parameters = {{ s = {{ axes = "d_in", init = "ones" }} }}
        let        = {{ scale = "mean(x @ s, axis='seq')", delta = "tanh(delta)" }}
        merge      = false
        {PREFIX}""")
    assert not rule.use
    by_hand = check(read_text(FLAT, "flat.toml"))
    required = [section.required for section in rule.sections]
    assert required == [True, True, False, False]
    plain = rule.model_copy(
        update={"required": False, "also": tuple(s.model_copy(update={"required": False}) for s in rule.also)}
    )
    assert plain == by_hand
    assert rule.made_of == 2


def test_its_own_section_comes_first() -> None:
    rule = composite(f"""
        [options]
        amount = {{ default = 2.0 }}
        [match]
        role = "norm"
        [rewrite]
        y = "y * amount"
        {LORA} merge = false""")
    assert [section.match.role for section in rule.sections] == [("norm",), ("linear",)]
    assert rule.sections[1].merge == {}


def test_labels_are_numbered_and_can_be_chosen() -> None:
    rule = composite(f'{LORA}{LORA}match.part = "o"\n{LORA}label = "third"\nmatch.part = "k"')
    assert [next(iter(section.parameters)) for section in rule.sections] == ["lora_A", "lora_2_A", "third_A"]
    assert {"lora_rank", "lora_2_rank", "third_rank"} <= set(rule.options)


def test_one_option_can_serve_two_rules() -> None:
    rule = composite(f"""
        shorthand = "size"
        [options]
        size = {{ default = 3, min = 1, max = 9 }}
        {LORA} options.rank = "size"
        {PREFIX} options = {{ length = "size", positions = "shift" }}""")
    assert rule.sections[0].parameters["lora_A"].axes == "rank=size d_in"
    assert rule.sections[1].parameters["prefix_P_k"].axes == "kv_heads keys=size head_dim"
    assert rule.sections[0].match.where == ("size < d_in", "size < d_out")
    assert rule.options["prefix_positions"].default == "shift"
    assert "lora_rank" not in rule.options


def test_a_parameter_can_start_otherwise() -> None:
    rule = composite(
        f'{LORA}options.drop = 0.5\n[use.parameters]\nA = {{ axes = "rank d_in", init = "normal(std=drop)" }}'
    )
    assert rule.parameters["lora_A"].init == "normal(std=lora_drop)"
    assert rule.parameters["lora_A"].axes == "rank=lora_rank d_in"


def test_a_rewrite_can_be_replaced() -> None:
    rule = composite(f'{LORA}merge = false\nrewrite.y = "y * sigmoid(delta)"')
    assert rule.rewrite == {"y": "y * sigmoid(lora_delta)"}


def test_composites_of_composites(library: Library, tmp_path: Path) -> None:
    (tmp_path / "both.toml").write_text(HEAD + LORA + 'let.scale = "2 * scale"\nmerge = false\n' + PREFIX)
    text = 'format = 1\nname = "outer"\nsummary = "Outer."\n[[use]]\nrule = "both"\nlet.lora_scale = "lora_scale + 1"\n'
    rule = check(read_text(text, "outer.toml"), library.rule)
    assert rule.let["both_lora_scale"] == "both_lora_scale_old_2 + 1"
    assert rule.let["both_lora_scale_old_2"] == "2 * both_lora_scale_old"
    assert rule.let["both_lora_scale_old"] == "both_lora_alpha / both_lora_rank"
    assert set(rule.options) >= {"both_lora_rank", "both_prefix_length"}
    assert rule.made_of == 2


def test_an_error_shows_what_was_written_and_every_use_of_it(library: Library, tmp_path: Path) -> None:
    (tmp_path / "both.toml").write_text(HEAD + LORA + 'let.scale = "2 * scale"\nmerge = false\n')
    text = 'format = 1\nname = "outer"\nsummary = "Outer."\n[[use]]\nrule = "both"\nparameters.lora_A'
    with pytest.raises(RuleError) as caught:
        check(read_text(text + ' = { axes = "rank=3 d_in", init = "zeros" }', "outer.toml"), library.rule)
    assert str(caught.value).splitlines() == [
        "R031 lora.toml, [let] delta, line 25, used by both.toml, use[0], line 5, used by outer.toml, use[0], line 4",
        "  @: the axis 'rank' is 3 long on one side, both_lora_rank on the other",
        "    scale * (dropout(x, p=drop) @ A @ B)",
        "             ^^^^^^^^^^^^^^^^^^^^^^^^^^",
    ]


def test_it_is_stored_flat() -> None:
    bound = bind("mam(prefix_length=16)")
    stored = flatten(bound)
    assert "use" not in stored["rule"]
    assert Bound.from_flat(stored) == bound
    with pytest.raises(RuleError) as caught:
        Bound.from_flat({"rule": read_text(HEAD + LORA, "x").content})
    assert caught.value.code == "R048"


def test_an_option_that_an_override_made_idle_is_gone() -> None:
    with pytest.raises(UnknownOptionError):
        bind("unipelt(lora_alpha=3)")


def test_what_is_used_may_change_while_the_composite_does_not(library: Library, tmp_path: Path) -> None:
    inner, outer = tmp_path / "inner.toml", tmp_path / "outer.toml"
    text = (SHIPPED.folders[0] / "lora.toml").read_text().replace('"lora"', '"inner"', 1)
    inner.write_text(text)
    outer.write_text('format = 1\nname = "outer"\nsummary = "Outer."\n[[use]]\nrule = "inner"\n')
    assert library.rule("outer").options["inner_rank"].default == 8
    inner.write_text(text.replace("default = 8, ", "default = 16,"))
    assert load_rule(outer, library).options["inner_rank"].default == 16


def case(code: str, text: str) -> tuple[str, str]:
    return code, text


CASES = [
    case("R003", LORA + 'lets = { scale = "2" }'),
    case("R003", LORA + 'match = { prt = "q" }'),
    case("R004", '[options]\nsize = { default = 3 }'),
    case("R004", '[let]\na = "1"\n' + LORA),
    case("R005", LORA + "merge = 1"),
    case("R005", LORA.replace('"lora"', '"../lora"')),
    case("R020", LORA + f'label = "l{"o" * 38}"'),
    case("R007", LORA + 'let.scale = "2 +"'),
    case("R010", LORA + 'parameters.A = { axes = "rank Rank", init = "zeros" }'),
    case("R020", LORA + LORA + 'label = "lora"'),
    case("R020", '[options]\nlora_rank = { default = 3, min = 1 }\n' + LORA),
    case("R023", LORA + 'match.role = "liner"'),
    case("R024", LORA + 'match.part = "qq"'),
    case("R010", LORA + 'match.values.y = "d_in *"'),
    case("R026", LORA + 'match.values.W = "d_out"'),
    case("R027", LORA + 'match.where = "rnk < d_in"'),
    case("R028", LORA + 'let.scale = "alhpa / rank"'),
    case("R031", LORA + 'let.delta = "delta @ A"'),
    case("R034", LORA + 'parameters.s = { axes = "d_in", init = "ones" }'),
    case("R035", LORA + 'let.idle = "rank"'),
    case("R036", '[options]\nidle = { default = 3 }\n' + LORA),
    case("R037", LORA + 'let = { scale = "g", g = "scale" }'),
    case("R039", LORA + 'match.values = { x = "batch seq d_in", y = "batch seq d_out" }\nlet.scale = "mean(x, axis=\'d_in\')"'),
    case("R039", LORA + 'rewrite.y = "x"'),
    case("R040", PREFIX.replace("prefix", "prefix_mlp") + 'rewrite.mask = "see_prefix(mask, 3)"'),
    case("R048", LORA.replace("lora", "lorra")),
    case("R051", LORA + "options.rnk = 3"),
    case("R051", LORA + "options.rank = 0"),
    case("R051", LORA + 'options.rank = "size"'),
    case("R051", '[options]\nsize = { default = 3 }\n' + LORA + 'options.rank = "size"'),
    case("R051", LORA + 'options.alpha = 3\nlet.scale = "1"'),
    case("R052", PREFIX + "merge = false"),
    case("R052", LORA + 'let.A = "1"'),
    case("R052", LORA + 'let.x = "1"'),
    case("R052", '[[use]]\nrule = "mam"\nmatch.part = "attention"'),
    case("R027", CHOICE + LORA + "where = \"kin == 'a'\""),
    case("R027", CHOICE + LORA + "where = \"kind == 'c'\""),
    case("R027", LORA + 'where = "rank < 3"'),
    case("R065", PREFIX + 'fold = "k_prefx"'),
    case("R065", PREFIX + 'fold = "k_prefix"\nlet.k_prefix = "k_prefix * k"'),
    case("R005", BOTTLENECK + 'saved = "Count"'),
    case("R035", BOTTLENECK + 'added = "z"'),
    case("R061", BOTTLENECK + 'saved = "count"'),
    case("R061", COUNT.replace("min = 1", "min = 0") + BOTTLENECK + 'saved = "count"'),
    case("R061", COUNT + BOTTLENECK + 'saved = "count"\noptions.size = 3'),
    case("R061", COUNT + BOTTLENECK.replace("bottleneck", "bitfit") + 'saved = "count"'),
    case("R061", COUNT.replace("count", "rank") + LORA + 'saved = "rank"'),
    case("R062", PREFIX + 'added = "z"'),
    case("R020", LORA + 'added = "delta"\nrewrite.y = "y - delta"'),
    case("R020", LORA + 'added = "z"\nrewrite.y = "y - z"\nlet.z = "x @ A @ B"'),
    case("R031", COUNT + BOTTLENECK + 'saved = "count"'),
    case("R031", COUNT + BOTTLENECK + 'saved = "count"\nadded = "z"\nrewrite.y = "y + max(z, axis=\'cuont\')"'),
]  # fmt: skip


def test_an_option_chooses_among_uses() -> None:
    a, b = LORA + "where = \"kind == 'a'\"\n", PREFIX + "where = \"kind == 'b'\"\n"
    rule = composite(CHOICE + a + b)
    told = {section.match.role: section.match.where for section in rule.sections}
    assert told["linear",] == ("lora_rank < d_in", "lora_rank < d_out", "kind == 'a'")
    assert told["positions",] == ("prefix_positions == 'shift'", "kind == 'b'")
    for kind, roles in (("a", {"linear"}), ("b", {"attention"})):
        options = {name: option.default for name, option in rule.options.items()} | {"kind": kind}
        assert {
            role for each in rule.sections if is_on(rule, each, options) for role in each.match.role
        } == roles


def test_what_is_folded_stays_folded_where_it_is_replaced() -> None:
    assert composite(PREFIX + 'fold = "k_prefix"').fold == ("prefix_k_prefix",)
    use = PREFIX.replace("prefix", "prefix_mlp")
    assert composite(use).fold == ("prefix_mlp_k_prefix", "prefix_mlp_v_prefix")
    gated = composite(use + "let.k_prefix = \"mean(mean(h, axis='seq'), axis='d_model') * k_prefix\"")
    assert gated.fold == ("prefix_mlp_k_prefix_old", "prefix_mlp_v_prefix")
    made = '{ axes = "kv_heads keys=length head_dim", init = "zeros" }'
    other = composite(f'{use}let.k_prefix = "2 * P_k"\nparameters.P_k = {made}')
    assert other.fold == ("prefix_mlp_v_prefix",)


def refusal(text: str) -> RuleError:
    with pytest.raises(RuleError) as caught:
        composite(text)
    return caught.value


@pytest.mark.parametrize("index", range(len(CASES)), ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)])
def test_each_fault_has_its_code(index: int) -> None:
    code, text = CASES[index]
    assert refusal(text).code == code


def test_messages(golden: Callable[[str, str], None]) -> None:
    golden("lang/use_errors.txt", "\n\n".join(f"{text.strip()}\n\n{refusal(text)}" for _, text in CASES))


def written(folder: Path, name: str, uses: list[str], more: str = "") -> None:
    used = "".join(f'[[use]]\nrule = "{use}"\n' for use in uses)
    (folder / f"{name}.toml").write_text(f'format = 1\nname = "{name}"\nsummary = "{name}."\n{more}{used}')


def test_a_circle_of_use_is_named(library: Library, tmp_path: Path) -> None:
    written(tmp_path, "one", ["two"])
    written(tmp_path, "two", ["lora", "one"])
    with pytest.raises(RuleError, match="one → two → one goes round in a circle") as caught:
        library.rule("one")
    assert caught.value.code == "R049"
    assert str(caught.value).startswith("R049 two.toml, use[1], line 6")


def test_a_composite_has_at_most_sixteen_rules(library: Library, tmp_path: Path) -> None:
    written(tmp_path, "four", ["lora"] * 4)
    written(tmp_path, "sixteen", ["four"] * 4)
    written(tmp_path, "more", ["lora", "sixteen"])
    assert library.rule("sixteen").made_of == 16
    for name, uses in (("more", ["lora", "sixteen"]), ("many", ["lora"] * 17)):
        written(tmp_path, name, uses)
        with pytest.raises(RuleError, match="at most 16 rules") as caught:
            library.rule(name)
        assert caught.value.code == "R050"


def test_what_is_added_has_a_name(library: Library, tmp_path: Path) -> None:
    rule = composite(f'{LORA}added = "z"\nrewrite.y = "y - z"\nmerge = false')
    assert rule.rewrite == {"y": "y - lora_z"}
    assert rule.let["lora_z"] == "lora_delta"
    for text, told in (("2 * y + y", "2 * y"), ("y * 2", ""), ("y - 2 * y", "")):
        written(tmp_path, "norms", [], f'[match]\nrole = "norm"\n[rewrite]\ny = "{text}"\n')
        use = '[[use]]\nrule = "norms"\nadded = "z"\nrewrite.y = "z"\n'
        if told:
            assert composite(use, library).let == {"norms_z": told}
            continue
        with pytest.raises(RuleError, match=r"which is not 'y \+ …'") as caught:
            composite(use, library)
        assert caught.value.code == "R062"


def test_what_used_rules_say_of_each_other_holds(library: Library, tmp_path: Path) -> None:
    scale = '[match]\nrole = "norm"\n[rewrite]\ny = "y * 2"\n'
    written(tmp_path, "first", [], f'before = ["second", "third"]\n{scale}')
    written(tmp_path, "second", [], scale)
    written(tmp_path, "alone", [], f'conflicts = "first"\n{scale}')
    written(tmp_path, "good", ["first", "second"])
    assert library.rule("good").before == ("third",)
    written(tmp_path, "wrong", ["second", "first"])
    written(tmp_path, "fight", ["first", "alone"])
    for name, said in (("wrong", "first must be used before second"), ("fight", "exclude each other")):
        with pytest.raises(RuleError, match=said) as caught:
            library.rule(name)
        assert caught.value.code == "R053"
