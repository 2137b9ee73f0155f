"""Tiny models as transformers loads them with bitsandbytes, and an adapter's equal in HF PEFT."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import peftc
from tests.models import llama, randomise

NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
FP4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}
INT8 = {"load_in_8bit": True}
LORA = "lora:all-linear(rank=4, alpha=12)"


def wide(**settings: Any) -> Any:
    """The tiny decoder with rows of whole blocks, as bitsandbytes' kernels for CPUs want them."""
    return llama(hidden_size=64, intermediate_size=128, **settings)


def loaded(model: Any, folder: Path, settings: dict[str, Any], **given: Any) -> Any:
    """A model, saved and loaded in few bits."""
    from transformers import BitsAndBytesConfig
    from transformers.utils import logging

    model.save_pretrained(folder)
    logging.disable_progress_bar()
    config = BitsAndBytesConfig(**settings)
    return type(model).from_pretrained(folder, quantization_config=config, **given)


def pair(model: Any, spec: str = LORA, **settings: Any) -> tuple[Any, Any, dict[str, str]]:
    """Compiled model, HF PEFT's over the same one, path → path of what trains; random weights in both. They train."""
    from peft import LoraConfig, get_peft_model

    compiled: Any = peftc.compile(model, [spec], defaults=False)
    randomise(compiled, scale=0.1)
    ends = sorted({each.site.path.rpartition(".")[2] for each in compiled.peftc_plan.applications})
    config = LoraConfig(r=4, lora_alpha=12, target_modules=ends)
    theirs: Any = get_peft_model(copy.deepcopy(model), config, **settings)
    names = {
        parameter.path: f"base_model.model.{each.site.path}.lora_{parameter.name}.default.weight"
        for each in compiled.peftc_plan.applications
        for parameter in each.parameters
    }
    with torch.no_grad():
        for ours, other in names.items():
            theirs.get_parameter(other).copy_(compiled.get_parameter(ours))
    return compiled.train(), theirs.train(), names


def relative(one: Tensor, other: Tensor) -> float:
    """Largest difference over the largest value."""
    return float((one - other).detach().abs().max() / other.detach().abs().max())
