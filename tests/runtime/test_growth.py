"""What becomes of the arguments of a call when rows go in front of what the model reads. Captures nothing."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import peftc
from peftc.errors import ProgramError
from peftc.runtime.filler import filler_of
from peftc.runtime.growth import SOURCE, TARGET, UNTRAINED, Growth
from tests.models import bert, tokens

ROWS, FILLER = 2, 7
IDS = torch.tensor([[11, 12, 13], [14, 15, 16]])
ONE = Growth({SOURCE: ROWS}, {SOURCE: ("model",)}, {}, FILLER)
BOTH = Growth({SOURCE: ROWS}, {SOURCE: ("encoder",), TARGET: ("decoder",)}, {}, FILLER)
NAMES = ("input_ids", "decoder_input_ids", "attention_mask")


class Cache:
    """Tells a length, as caches do."""

    def __init__(self, length: int) -> None:
        self.length = length

    def get_seq_length(self) -> int:
        return self.length


def grown(growth: Growth = ONE, path: str = "", /, **arguments: Any) -> dict[str, Any]:
    return growth.grow(path, NAMES if TARGET in growth.paths else ("input_ids",), arguments)[0]


@pytest.mark.parametrize(
    ("name", "value", "want"),
    [
        ("input_ids", IDS, [7, 7, 11, 12, 13]),
        ("attention_mask", torch.ones_like(IDS) == 1, [1, 1, 1, 1, 1]),
        ("attention_mask", torch.zeros_like(IDS), [1, 1, 0, 0, 0]),
        ("position_ids", torch.arange(3).expand(2, 3) + 4, [0, 1, 6, 7, 8]),
        ("position_ids", torch.arange(3).expand(1, 3), [0, 1, 2, 3, 4]),
        ("cache_position", torch.arange(3), [0, 1, 2, 3, 4]),
        ("token_type_ids", torch.tensor([[3, 4, 4]] * 2), [3, 3, 3, 4, 4]),
        ("labels", IDS, [UNTRAINED, UNTRAINED, 11, 12, 13]),
        ("labels", torch.tensor([1, 0]), [1, 0]),
        ("labels", torch.ones(2, 3), [1, 1, 1]),
        ("start_positions", torch.tensor([0, 1]), [2, 3]),
        ("head_mask", torch.ones(2, 4), [1, 1, 1, 1]),
    ],
)
def test_one_argument(name: str, value: Tensor, want: list[int]) -> None:
    given: dict[str, Any] = {"input_ids": IDS, name: value}
    found = grown(ONE, "", **given)
    row = found[name] if found[name].dim() == 1 else found[name][0]
    assert row.tolist() == want
    assert found[name].dtype == value.dtype
    assert found["input_ids"].tolist()[1] == [7, 7, 14, 15, 16]


def test_rows_are_put_in_front_of_rows() -> None:
    given = torch.randn(2, 3, 5)
    found = grown(inputs_embeds=given, attention_mask=torch.ones(2, 3))
    assert found["inputs_embeds"].shape == (2, 5, 5)
    assert torch.equal(found["inputs_embeds"][:, ROWS:], given)
    assert found["attention_mask"].shape == (2, 5)
    box = torch.arange(24).reshape(2, 3, 4)
    assert torch.equal(grown(input_ids=IDS, bbox=box)["bbox"][:, 0], box[:, 0])


def test_texts_to_choose_from() -> None:
    given = IDS.reshape(1, 2, 3)
    found = grown(input_ids=given, attention_mask=torch.ones_like(given), labels=torch.tensor([1]))
    assert found["input_ids"].tolist() == [[[7, 7, 11, 12, 13], [7, 7, 14, 15, 16]]]
    assert found["attention_mask"].shape == (1, 2, 5)
    assert found["labels"].tolist() == [1]


def test_a_call_that_goes_on() -> None:
    arguments = {
        "input_ids": IDS[:, :1],
        "attention_mask": torch.ones(2, 6),
        "position_ids": torch.full((2, 1), 5),
        "past_key_values": Cache(5 + ROWS),
    }
    found, continued = ONE.grow("", ("input_ids",), arguments)
    assert continued
    assert torch.equal(found["input_ids"], IDS[:, :1])
    assert found["attention_mask"].shape == (2, 6 + ROWS)
    assert found["position_ids"].tolist() == [[7], [7]]
    assert not ONE.grow("", ("input_ids",), {**arguments, "past_key_values": Cache(0)})[1]


def test_a_cache_without_the_rows_is_told_by_the_mask() -> None:
    arguments = {"input_ids": IDS[:, :1], "attention_mask": torch.ones(2, 6), "past_key_values": Cache(5)}
    found, continued = ONE.grow("", ("input_ids",), arguments)
    assert continued
    assert found["attention_mask"].shape == (2, 6)


def test_a_call_of_a_module_that_reads_nothing_stays() -> None:
    assert torch.equal(grown(ONE, "model.layers.0", hidden_states=IDS)["hidden_states"], IDS)
    assert grown(ONE, "model", input_ids=IDS)["input_ids"].shape == (2, 5)


def test_an_encoder_and_a_decoder() -> None:
    said, mask = IDS[:, :2], torch.ones(2, 3)
    found = grown(BOTH, input_ids=IDS, attention_mask=mask, decoder_input_ids=said, labels=said)
    assert {name: each.shape[1] for name, each in found.items()} == {
        "input_ids": 5, "attention_mask": 5, "decoder_input_ids": 2, "labels": 2,
    }  # fmt: skip
    longer = [torch.randn(2, 5, 4)]
    found = grown(BOTH, encoder_outputs=longer, attention_mask=mask, decoder_input_ids=said)
    assert found["attention_mask"].shape == (2, 5)
    shorter: dict[str, Any] = {
        "encoder_outputs": [torch.randn(2, 3, 4)],
        "attention_mask": mask,
        "decoder_input_ids": said,
    }
    assert grown(BOTH, "", **shorter)["attention_mask"].shape == (2, 3)
    inside = {"encoder_hidden_states": longer[0], "encoder_attention_mask": mask, "input_ids": said}
    found = BOTH.grow("decoder", ("input_ids", "encoder_attention_mask"), inside)[0]
    assert found["encoder_attention_mask"].shape == (2, 5)
    assert found["input_ids"].shape == (2, 2)


def test_one_target_for_each_of_as_many_texts_as_a_text_has_tokens() -> None:
    labels = torch.tensor([1, 0, 2])
    found = grown(ONE, "", input_ids=torch.ones(3, 3, dtype=torch.long), labels=labels)
    assert torch.equal(found["labels"], labels)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"attention_mask": torch.ones(2, 1, 3, 3)}, "it is not known what 'attention_mask' is for them"),
        ({"attention_mask": {"full": torch.ones(2, 3)}}, "it is not known what 'attention_mask' is for them"),
        ({"weights": torch.ones(2, 3)}, "it is not known what 'weights' is for them"),
        (
            {"past": ((torch.ones(2, 4, 3, 5),) * 2,)},
            "whether they are in 'past' already: it holds bare tensors",
        ),
        ({"state": {"k": torch.ones(2, 3, 5)}}, "whether they are in 'state' already"),
        ({"cache": torch.ones(2, 2, 4, 3, 5)}, "whether they are in 'cache' already"),
    ],
)
def test_what_cannot_be_told_is_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ProgramError, match=said):
        grown(ONE, "", input_ids=IDS, **arguments)


def test_what_is_no_cache_may_hold_bare_tensors() -> None:
    states = torch.ones(2, 3, 5)
    assert grown(BOTH, "decoder", input_ids=IDS, encoder_hidden_states=states, past_key_values=())
    assert grown(BOTH, input_ids=IDS, decoder_input_ids=IDS, encoder_outputs=(states,))


def test_too_many_for_the_places_that_there_are() -> None:
    growth = Growth({SOURCE: ROWS}, {SOURCE: ("model",)}, {SOURCE: 5}, FILLER)
    grown(growth, input_ids=IDS)
    longer = torch.cat([IDS, IDS], 1)
    with pytest.raises(ProgramError, match="6 tokens, none in the cache and 2 rows in front need 8 places"):
        grown(growth, input_ids=longer)
    padded = torch.tensor([[0, 0, 0, 0, 1, 2]])
    assert grown(growth, input_ids=longer, position_ids=padded)["position_ids"].shape == (1, 8)
    with pytest.raises(ProgramError, match="1 tokens, 5 in the cache and 2 rows in front need 6 places"):
        grown(growth, input_ids=IDS[:, :1], past_key_values=Cache(5))


def test_the_filler_means_nothing_special() -> None:
    model = bert()
    assert (model.config.pad_token_id, filler_of(model)) == (0, 1)
    model.config.bos_token_id, model.config.eos_token_id = 1, [2, 4]
    assert filler_of(model) == 3
    assert filler_of(nn.Embedding(5, 2, padding_idx=0)) == 1


def test_a_call_that_grows_is_traced_without_a_warning() -> None:
    compiled = peftc.compile(bert(), ["prompt:2"], {"input_ids": tokens()}, defaults=False).eval()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.compile(compiled, backend="eager", fullgraph=True)(input_ids=tokens())
    assert not [str(each.message) for each in caught if "lru_cache" in str(each.message)]
