"""Roles from data flow alone: on two architectures, and on modules whose names mislead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import peftc
from peftc.analyse import Analysis, analyse
from peftc.errors import NoMatchError, UnknownPartError
from tests.graphs import captured
from tests.models import bert, llama, randomise, tokens

D, HEADS = 12, 3


def analysed(module: nn.Module, **inputs: Any) -> Analysis:
    return analyse(captured(module, **inputs).graph, module)


def parts(analysis: Analysis) -> dict[str, str]:
    """Path of each linear site → its parts, in order."""
    found: dict[str, str] = {}
    for site in analysis.sites:
        if site.role == "linear":
            found[site.path] = " ".join(
                part for part in (found.get(site.path, ""), site.part or "other") if part
            )
    return found


def paths(analysis: Analysis, role: str) -> list[str]:
    return [site.path for site in analysis.sites if site.role == role]


def test_every_part_of_an_encoder() -> None:
    analysis = analysed(bert(), input_ids=tokens())
    want = {"bert.pooler.dense": "other", "classifier": "head"}
    for layer in range(2):
        names = {"attention.self.query": "q", "attention.self.key": "k", "attention.self.value": "v"}
        names |= {"attention.output.dense": "o", "intermediate.dense": "up", "output.dense": "down"}
        want |= {f"bert.encoder.layer.{layer}.{name}": part for name, part in names.items()}
    assert parts(analysis) == want
    layers = [f"bert.encoder.layer.{layer}" for layer in range(2)]
    assert paths(analysis, "attention") == [f"{layer}.attention.self" for layer in layers]
    assert paths(analysis, "ffn") == layers
    assert paths(analysis, "block") == layers
    tables = ("word_embeddings", "token_type_embeddings", "position_embeddings")
    assert set(paths(analysis, "embedding")) == {f"bert.embeddings.{table}" for table in tables}
    assert len(paths(analysis, "norm")) == 5
    assert [(site.path, site.part) for site in analysis.sites if site.role == "head"] == [
        ("classifier", "task")
    ]
    assert {site.layer for site in analysis.sites if site.part == "q"} == {0, 1}


def test_every_part_of_a_decoder() -> None:
    analysis = analysed(llama(), input_ids=tokens(), use_cache=False)
    want = {"lm_head": "head"}
    for layer in range(2):
        names = {f"self_attn.{part}_proj": part for part in "qkvo"} | {
            f"mlp.{part}_proj": part for part in ("gate", "up", "down")
        }
        want |= {f"model.layers.{layer}.{name}": part for name, part in names.items()}
    assert parts(analysis) == want
    (first, _) = [site for site in analysis.sites if site.role == "attention"]
    assert dict(first.sizes) == {"heads": 4, "kv_heads": 2, "head_dim": 6, "value_dim": 6, "d_model": 24}
    assert len(paths(analysis, "norm")) == 5
    assert [(site.path, site.part) for site in analysis.sites if site.role == "head"] == [
        ("lm_head", "vocabulary")
    ]
    assert analysis.unread == ()


@pytest.mark.parametrize("make", [bert, llama])
def test_sites_do_not_depend_on_how_attention_is_spelled(make: Callable[..., Any]) -> None:
    one = analysed(make(attention="eager"), input_ids=tokens())
    other = analysed(make(), input_ids=tokens())
    assert {(s.role, s.id) for s in one.sites} == {(s.role, s.id) for s in other.sites}


def heads(x: Tensor) -> Tensor:
    return x.view(x.shape[0], x.shape[1], HEADS, -1).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = torch.softmax(heads(q) @ heads(k).transpose(-1, -2) * 0.5, -1) @ heads(v)
    return out.transpose(1, 2).reshape(q.shape)


class Swapped(nn.Module):
    """What is called q is v, and the other way round; k is called out."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.out_proj, self.v_proj, self.k_proj = (nn.Linear(D, D) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.k_proj(attend(self.v_proj(x), self.out_proj(x), self.q_proj(x)))  # type: ignore[no-any-return]


class Dense(nn.Module):
    """Everything has the same name."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.ModuleList([nn.Linear(D, D) for _ in range(4)] + [nn.Linear(D, 20), nn.Linear(20, D)])

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dense[2](attend(self.dense[1](x), self.dense[3](x), self.dense[0](x)))
        return x + self.dense[5](torch.relu(self.dense[4](x)))  # type: ignore[no-any-return]


class Gated(nn.Module):
    """Which of the two is the gate is told by the activation alone."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.gate, self.down = nn.Linear(D, 20), nn.Linear(D, 20), nn.Linear(20, D)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.gate(x) * nn.functional.silu(self.up(x)))  # type: ignore[no-any-return]


X = torch.randn(3, 7, D, generator=torch.Generator().manual_seed(0))


def test_names_mean_nothing() -> None:
    assert parts(analysed(Swapped(), x=X)) == {"v_proj": "q", "out_proj": "k", "q_proj": "v", "k_proj": "o"}
    dense = parts(analysed(Dense(), x=X))
    assert dense == {f"dense.{i}": part for i, part in enumerate(("v", "q", "o", "k", "up", "down"))}
    assert parts(analysed(Gated(), x=X)) == {"up": "gate", "gate": "up", "down": "down"}


class Fused(nn.Module):
    """One projection for q, k and v."""

    def __init__(self, split: Callable[[Tensor], tuple[Tensor, ...]]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.c_attn, self.c_proj, self.split = nn.Linear(D, 3 * D), nn.Linear(D, D), split

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        fused = self.c_attn(x)
        q, k, v = self.split(fused)
        out = torch.softmax(q @ k.transpose(-1, -2) * 0.5, -1) @ v
        return x + self.c_proj(out.transpose(1, 2).reshape(x.shape)), fused


def contiguous(fused: Tensor) -> tuple[Tensor, ...]:
    return tuple(heads(part) for part in fused.chunk(3, -1))


def interleaved(fused: Tensor) -> tuple[Tensor, ...]:
    per_head = fused.view(*fused.shape[:2], HEADS, 3, D // HEADS).permute(3, 0, 2, 1, 4)
    return per_head[0], per_head[1], per_head[2]


def rows(split: Callable[[Tensor], tuple[Tensor, ...]], part: str) -> list[int]:
    """Channels of a part, by sending channel numbers through the split by hand."""
    channels = torch.arange(3 * D).float().expand(1, 2, -1)
    return sorted(int(number) for number in split(channels)["qkv".index(part)][0, :, 0].flatten())


@pytest.mark.parametrize("split", [contiguous, interleaved])
def test_a_fused_projection_has_exact_rows(split: Callable[[Tensor], tuple[Tensor, ...]]) -> None:
    sites = {site.part: site for site in analysed(Fused(split), x=X).sites if site.role == "linear"}
    assert set(sites) == {"q", "k", "v", "o"}
    for part in "qkv":
        site = sites[part]
        assert site.path == "c_attn"
        assert site.sizes["d_out"] == D
        assert site.rows is not None
        assert [row for start, stop in site.rows for row in range(start, stop)] == rows(split, part)
    assert sites["o"].rows is None


@pytest.mark.parametrize("split", [contiguous, interleaved])
def test_lora_on_q_and_v_of_a_fused_projection_leaves_k(
    split: Callable[[Tensor], tuple[Tensor, ...]],
) -> None:
    model = Fused(split)
    compiled: Any = peftc.compile(model, ["lora:q,v(rank=2, alpha=6)"], {"x": X}, defaults=False)
    randomise(compiled)
    tensors = {
        (each.site.part, parameter.name): compiled.get_parameter(parameter.path)
        for each in compiled.peftc_plan.applications
        for parameter in each.parameters
    }
    assert set(tensors) == {("q", "A"), ("q", "B"), ("v", "A"), ("v", "B")}
    update = torch.zeros(3 * D, D)
    for part in "qv":
        update = update.index_copy(
            0, torch.tensor(rows(split, part)), 3.0 * tensors[part, "B"] @ tensors[part, "A"]
        )
    weight = model.c_attn.weight.detach() + update
    fused = nn.functional.linear(X, weight, model.c_attn.bias)
    q, k, v = split(fused)
    attended = torch.softmax(q @ k.transpose(-1, -2) * 0.5, -1) @ v
    want = X + model.c_proj(attended.transpose(1, 2).reshape(X.shape))
    got, got_fused = compiled(X)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    plain = model(X)[1]
    keys, others = rows(split, "k"), rows(split, "q") + rows(split, "v")
    assert torch.equal(got_fused[..., keys], plain[..., keys])
    assert not torch.isclose(got_fused[..., others], plain[..., others]).all(0).all(0).any()
    direction = torch.randn(got.shape, generator=torch.Generator().manual_seed(1))
    ours = torch.autograd.grad((got * direction).sum(), list(tensors.values()))
    theirs = torch.autograd.grad((want * direction).sum(), list(tensors.values()))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


class MeanPooled(nn.Module):
    """A head over the mean of an encoder's states; the encoder's pooler is computed and not read."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = bert().bert
        self.head = nn.Linear(24, 2)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.encoder(input_ids).last_hidden_state.mean(1))  # type: ignore[no-any-return]


def test_a_pooler_that_nobody_reads_is_no_site() -> None:
    model = MeanPooled()
    analysis = analysed(model, input_ids=tokens())
    assert not [site for site in analysis.sites if "pooler" in site.path]
    assert analysis.unread == ("encoder.pooler.dense.weight", "encoder.pooler.dense.bias")
    compiled: Any = peftc.compile(model, ["lora:all-linear", "bitfit"], {"input_ids": tokens()})
    compiled(tokens()).sum().backward()
    for name, parameter in compiled.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), name
    assert {"head.weight", "head.bias"} <= set(compiled.peftc_plan.trained)


def test_parts_that_a_model_has_not_are_refused() -> None:
    with pytest.raises(UnknownPartError, match="gate"):
        peftc.compile(bert(), ["lora:q,gate"])
    with pytest.raises(NoMatchError, match="rank"):
        peftc.compile(bert(), ["lora:q(rank=64)"])


class Capped(nn.Module):
    """Scores over a vocabulary, scaled, capped by a tanh between a quotient and a product, or bent by one."""

    shift: Tensor

    def __init__(self, bend: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(1, 50))
        self.table, self.inner, self.out = nn.Embedding(50, D), nn.Linear(D, D), nn.Linear(D, 50)
        self.bend = bend

    def forward(self, ids: Tensor) -> Tensor:
        return self.bend(self.out(torch.relu(self.inner(self.table(ids)))) + self.shift)


@pytest.mark.parametrize(
    ("bend", "part"),
    [
        (lambda y: 0.25 * y, "head"),
        (lambda y: 30.0 * torch.tanh(y / 30.0), "head"),
        (torch.tanh, "head"),
        (lambda y: 2.0 * torch.tanh(y), "head"),
    ],
    ids=["scaled", "capped", "bent", "bent and scaled"],
)
def test_a_head_may_be_shifted_scaled_and_capped(bend: Callable[[Tensor], Tensor], part: str) -> None:
    found = parts(analysed(Capped(bend), ids=tokens()))
    assert found["out"] == part
    assert found["inner"] == "other"


class Written(nn.Module):
    """One attention, written in one of many ways, in a block."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, width = way, 24
        self.one, self.two, self.three, self.four = (nn.Linear(width, width) for _ in range(4))
        self.all = nn.Linear(width, 4 * width)
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)

    def attention(self, x: Tensor) -> Tensor:
        if self.way == "no heads":
            return self.four(functional.scaled_dot_product_attention(self.one(x), self.two(x), self.three(x)))  # type: ignore[no-any-return]
        q, k, v = self.one(x), self.two(x), self.three(x)
        if self.way == "turned":
            hidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
            weights = (q @ k.mT * 0.2).masked_fill(hidden, float("-inf")).softmax(-1)
            return self.four(weights @ v)  # type: ignore[no-any-return]
        gate = None
        if self.way == "gated":
            v, gate, q, k = self.all(x).chunk(4, -1)
        if self.way == "no projection":
            k = v = x
        q, k, v = (each.unflatten(-1, (2, 12)).transpose(1, 2) for each in (q, k, v))
        if self.way == "einsum":
            weights = (torch.einsum("bhid,bhjd->bhij", q, k) * 0.2).softmax(-1)
            gathered = torch.einsum("bhij,bhjd->bihd", weights, v).flatten(2)
        else:
            gathered = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        if gate is not None:
            gathered = gathered * gate.sigmoid()
        return gathered if self.way == "no output" else self.four(gathered)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.before(x))
        return x + self.narrow(functional.gelu(self.wide(self.between(x))))  # type: ignore[no-any-return]


FED = {"wide": "up", "narrow": "down"}
PLAIN = {"one": "q", "two": "k", "three": "v", "four": "o", **FED}


@pytest.mark.parametrize(
    ("way", "want"),
    [
        ("no heads", PLAIN),
        ("turned", PLAIN),
        ("einsum", PLAIN),
        ("no projection", {"one": "q", "four": "o", **FED}),
        ("no output", {"one": "q", "two": "k", "three": "v", **FED}),
        ("gated", {"all": "v other q k", "four": "o", **FED}),
    ],
)
def test_ways_to_write_an_attention(way: str, want: dict[str, str]) -> None:
    """Roles do not reach past a residual sum, and every channel of a fused projection belongs to some site."""
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(6, 24), nn.Sequential(Written(way), Written(way)))
    given = {"input": torch.randn(2, 5, 6)}
    found: dict[str, dict[int, str]] = {}
    for site in peftc.sites(model, given):
        if site.role == "linear" and site.layer == 1:
            start = site.rows[0][0] if site.rows else 0
            found.setdefault(site.path.rpartition(".")[2], {})[start] = site.part or "other"
    assert {name: " ".join(parts[at] for at in sorted(parts)) for name, parts in found.items()} == want
    assert [site.path for site in peftc.sites(model, given) if site.role == "block"] == ["1.0", "1.1"]
    compiled: Any = peftc.compile(model, ["lora:all-linear(rank=2)"], given, defaults=False)
    with compiled.disable_adapter(), torch.no_grad():
        for x in (given["input"], torch.randn(3, 8, 6)):
            torch.testing.assert_close(compiled(x), model(x), atol=1e-5, rtol=1e-5)


def test_ids_that_reach_a_mask_are_not_what_says_which_tokens_are_real() -> None:
    from peftc.runtime import capture_example
    from tests.zoo import entry, inputs

    model = entry("deberta-v2").model()
    given = inputs(model) | {"attention_mask": torch.ones(2, 12, dtype=torch.long)}
    _, _, (program, _, _) = capture_example(model, given)
    located = [each for each in analyse(program.graph, model).located if each.site.role == "block"]
    assert located
    assert all(use.ports["tokens"].node.name == "attention_mask" for each in located for use in each.uses)
