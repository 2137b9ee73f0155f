"""Programs by call signature: which calls share one, which have their own, and which are refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import peftc
from peftc.errors import CaptureError, ProgramError
from tests.models import bert, llama, padding, randomise, tokens


@pytest.fixture(scope="module")
def encoder() -> tuple[Any, Any]:
    model = bert()
    compiled: Any = peftc.compile(model, ["lora:q,v"])
    return model, compiled


def captures(compiled: Any) -> int:
    return len(compiled._peftc.entries)


def same(compiled: Any, model: Any, *args: Any, **kwargs: Any) -> None:
    with torch.no_grad(), compiled.disable_adapter():
        got, want = compiled(*args, **kwargs), model(*args, **kwargs)
    assert type(got) is type(want)
    for one, other in zip(tensors(got), tensors(want), strict=True):
        assert torch.equal(one, other)


def tensors(output: Any) -> Iterator[Tensor]:
    """All tensors of an output, those of tuples and caches too."""
    if isinstance(output, Tensor):
        yield output
    elif output is not None:
        for part in output.values() if isinstance(output, Mapping) else output:
            yield from tensors(part)


def test_sizes_share_a_program(encoder: tuple[Any, Any]) -> None:
    model, compiled = encoder
    same(compiled, model, tokens())
    before = captures(compiled)
    for batch, length in ((1, 1), (1, 9), (5, 1), (2, 2), (7, 30), (4, 4)):
        same(compiled, model, tokens(batch=batch, length=length))
    assert captures(compiled) == before


def test_positions_and_keywords_are_the_same_call(encoder: tuple[Any, Any]) -> None:
    model, compiled = encoder
    same(compiled, model, tokens(), padding())
    before = captures(compiled)
    same(compiled, model, attention_mask=padding(), input_ids=tokens())
    same(compiled, model, tokens(), attention_mask=padding(), token_type_ids=None)
    assert captures(compiled) == before


def test_labels_make_another(encoder: tuple[Any, Any]) -> None:
    model, compiled = encoder
    same(compiled, model, tokens(), labels=torch.tensor([0, 1, 1]))
    with torch.no_grad():
        assert compiled(tokens()).loss is None


def test_structures_and_switches(encoder: tuple[Any, Any]) -> None:
    model, compiled = encoder
    same(compiled, model, tokens(), output_hidden_states=True)
    same(compiled, model, tokens(), return_dict=False)


def test_unknown_and_repeated_arguments_are_refused(encoder: tuple[Any, Any]) -> None:
    _, compiled = encoder
    with pytest.raises((ProgramError, TypeError)) as found:
        compiled(tokens(), input_ids=tokens())
    assert "input_ids" in str(found.value)
    module: Any = peftc.compile(Small(), ["lora:path=one(rank=2)"], {"x": torch.randn(3, 6)})
    with pytest.raises(ProgramError, match="has no argument 'y'"):
        module(torch.randn(3, 6), y=1)
    with pytest.raises(ProgramError, match="takes 1 arguments, was given 2"):
        module(torch.randn(3, 6), 1)
    with pytest.raises(ProgramError, match="type object"):
        module(object())


class Masks(TorchDispatchMode):
    """Notes whether attentions were run with a mask."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.masked: list[bool] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "attention" in str(func) and "backward" not in str(func):
            self.masked.append((kwargs or {}).get("attn_mask") is not None)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("make", [bert, llama])
def test_a_mask_of_ones_takes_the_fast_program_and_padding_does_not(make: Any) -> None:
    model = make()
    compiled: Any = peftc.compile(model, ["lora:q,v"])
    randomise(compiled)
    ids, ones = tokens(), torch.ones(3, 11, dtype=torch.int64)
    with torch.no_grad():
        for mask, masked in ((ones, False), (padding(), True), (None, False)):
            with Masks() as seen:
                compiled(ids, attention_mask=mask)
            assert seen.masked == [masked, masked]
        torch.testing.assert_close(
            compiled(ids, attention_mask=ones).logits, compiled(ids).logits, atol=1e-5, rtol=1e-5
        )
        for mask in (ones, padding(), padding(left=True)):
            same(compiled, model, ids, attention_mask=mask)


class Small(nn.Module):
    """Two tied maps, a buffer that moves and one that does not."""

    scale: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)
        self.two.weight = self.one.weight
        self.register_buffer("scale", torch.randn(6))
        self.register_buffer("count", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.tanh(self.one(x) * self.scale)) + self.count  # type: ignore[no-any-return]


def test_buffers_are_read_when_run_and_tied_weights_stay_tied() -> None:
    model, x = Small(), torch.randn(3, 6)
    compiled: Any = peftc.compile(model, ["full"], {"x": x})
    assert compiled.one.weight is compiled.two.weight
    assert torch.equal(compiled(x), model(x))
    compiled.scale.fill_(2.0)
    compiled.count.fill_(5.0)
    with torch.no_grad():
        want = model.two(torch.tanh(model.one(x) * 2.0)) + 5.0
        assert torch.equal(compiled(x), want)
        assert not torch.equal(model(x), want)
    compiled(x).sum().backward()
    model(x).sum().backward()
    assert model.one.weight.grad is not None
    assert compiled.one.weight.grad is not None


class Cutting(nn.Module):
    """Looks at its data for a size."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x[: int(x.sum())])  # type: ignore[no-any-return]


def test_a_model_that_looks_at_its_data_is_refused_with_its_own_line() -> None:
    with pytest.raises(CaptureError) as found:
        peftc.compile(Cutting(), ["full"], {"x": torch.randn(3, 6)})
    assert "int(x.sum())" in str(found.value)
    assert "Cutting" in str(found.value)
    assert "test_programs.py" in str(found.value)


def test_a_module_that_does_not_say_what_it_takes_is_refused() -> None:
    with pytest.raises(CaptureError, match="example_inputs"):
        peftc.compile(Small(), ["full"])
