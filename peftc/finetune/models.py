"""Loads a tokenizer and a plain model from a local folder or a .gguf file, ready to be compiled.

Asks no hub and knows no model by name; what is missing or broken is a ModelError.
"""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from peftc.errors import ModelError, first_line
from peftc.finetune.job import Pooling, Task
from peftc.finetune.pooling import MeanPooledClassifier

GGUF_SUFFIX = ".gguf"


@dataclass(frozen=True)
class Loaded:
    """A plain model, its tokenizer and the names of its text inputs.

    `new` are parameters the files did not hold.
    """

    model: nn.Module
    tokenizer: Any
    input_names: tuple[str, ...]
    new: tuple[str, ...] = ()


def check_model_path(path: Path) -> None:
    """Raises ModelError where no model can be at this path."""
    if not path.exists():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, siblings, n=3, cutoff=0.6)
        raise ModelError(
            "no such folder or .gguf file",
            where=str(path),
            hint=f"did you mean {' or '.join(near)}?"
            if near
            else "models are read from this machine; no hub is asked",
        )
    if path.is_file():
        if path.suffix != GGUF_SUFFIX:
            raise ModelError(
                "is a file, but not a .gguf one", where=str(path), hint="give the folder it is in"
            )
        return
    if not (path / "config.json").is_file():
        inside = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
        weights = [entry.name for entry in path.glob(f"*{GGUF_SUFFIX}")]
        raise ModelError(
            "has no config.json, so it is not a model folder",
            where=str(path),
            detail=(f"it holds: {inside}",),
            hint=f"did you mean {path / weights[0]}?" if weights else None,
        )


def source(path: Path) -> tuple[Path, dict[str, Any]]:
    """The folder and the keyword arguments that transformers wants for it."""
    check_model_path(path)
    if path.is_dir():
        return path, {}
    return path.parent, {"gguf_file": path.name}


def load_tokenizer(path: Path) -> Any:
    """The model's tokenizer. Raises ModelError."""
    from transformers import AutoTokenizer

    folder, extra = source(path)
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, **extra)
    except Exception as error:
        raise ModelError(f"its tokenizer cannot be loaded: {first_line(error)}", where=str(path)) from error


def load_pretrained(auto_class: Any, path: Path, **extra: Any) -> tuple[Any, tuple[str, ...]]:
    """The model in float32, and the names of parameters its files did not hold. Raises ModelError."""
    folder, where_from = source(path)
    if where_from:
        try:
            from transformers.utils.quantization_config import GgufConfig

            # Without `dequantize` the model stays flagged as quantised, though its weights are not.
            extra["quantization_config"] = GgufConfig(gguf_file=path.name, dequantize=True)
        except ImportError as error:
            raise ModelError(
                "reading .gguf needs gguf", where=str(path), hint='pip install "peftc[gguf]"'
            ) from error
    try:
        with quiet_loading():
            model, info = auto_class.from_pretrained(
                folder,
                local_files_only=True,
                dtype=torch.float32,
                output_loading_info=True,
                **where_from,
                **extra,
            )
    except ImportError as error:
        raise ModelError(
            f"cannot be loaded: {first_line(error)}",
            where=str(path),
            hint='pip install "peftc[gguf]"' if where_from else None,
        ) from error
    except Exception as error:
        raise ModelError(f"cannot be loaded: {first_line(error)}", where=str(path)) from error
    other_sizes = [
        entry[0] if isinstance(entry, tuple) else entry for entry in info.get("mismatched_keys", ())
    ]
    return model, tuple(sorted({*info["missing_keys"], *other_sizes}))


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Without transformers' report of new and unused weights: what is new is told by `Loaded.new`."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def load_classifier(path: Path, pooling: Pooling, num_labels: int) -> Loaded:
    """An encoder under a mean-pooled head, or the model's own classification head. Raises ModelError."""
    from transformers import AutoModel, AutoModelForSequenceClassification

    tokenizer = load_tokenizer(path)
    if pooling == "model":
        # A head for another number of labels is made anew, and counted among what is.
        model, new = load_pretrained(
            AutoModelForSequenceClassification, path, num_labels=num_labels, ignore_mismatched_sizes=True
        )
        if model.config.pad_token_id is None:  # decoders find the last real token by it
            model.config.pad_token_id = tokenizer.pad_token_id or tokenizer.eos_token_id
        return Loaded(model, tokenizer, text_inputs(tokenizer, model), new)
    encoder, missing = load_pretrained(AutoModel, path)
    if encoder.config.is_encoder_decoder:
        encoder = encoder.get_encoder()
    width = getattr(encoder.config, "hidden_size", None) or getattr(encoder.config, "d_model", None)
    if not isinstance(width, int):
        raise ModelError("its config names no hidden size", where=str(path), hint="use --pooling model")
    model = MeanPooledClassifier(encoder, width, num_labels)
    new = (*(f"encoder.{name}" for name in missing), "head.weight", "head.bias")
    names = tuple(
        name
        for name in text_inputs(tokenizer, encoder)
        if name in inspect.signature(model.forward).parameters
    )
    return Loaded(model, tokenizer, names, new)


def load_causal(path: Path) -> Loaded:
    """A causal language model. Raises ModelError."""
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(path)
    model, new = load_pretrained(AutoModelForCausalLM, path)
    return Loaded(model, tokenizer, ("input_ids", "attention_mask"), new)


def load_for(task: Task, path: Path, pooling: Pooling, num_labels: int) -> Loaded:
    """The model for a task. Raises ModelError."""
    return load_causal(path) if task == "causal-lm" else load_classifier(path, pooling, num_labels)


def load_as_saved(path: Path) -> nn.Module:
    """The model in the class that its own config names. Raises ModelError."""
    import transformers

    auto_class: Any = transformers.AutoModel
    if path.is_dir():
        check_model_path(path)
        try:
            named = json.loads((path / "config.json").read_text(encoding="utf-8")).get("architectures") or []
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ModelError(f"its config.json is not JSON: {error}", where=str(path)) from error
        auto_class = getattr(transformers, named[0], auto_class) if named else auto_class
    elif path.suffix == GGUF_SUFFIX:  # one-file models are causal language models
        auto_class = transformers.AutoModelForCausalLM
    model: nn.Module = load_pretrained(auto_class, path)[0]
    return model


def text_inputs(tokenizer: Any, model: nn.Module) -> tuple[str, ...]:
    """What the tokenizer gives and the model takes; the attention mask always."""
    taken = inspect.signature(model.forward).parameters
    given = [name for name in tokenizer.model_input_names if name in taken]
    return tuple(given if "attention_mask" in given else [*given, "attention_mask"])


def example_inputs(loaded: Loaded, task: Task, vocabulary: int = 8) -> dict[str, torch.Tensor]:
    """Inputs of the training call's own signature, int64 [2 8] (labels of a classifier: int64 [2])."""
    ids = torch.arange(16, dtype=torch.int64).reshape(2, 8) % vocabulary
    inputs = {name: torch.zeros_like(ids) for name in loaded.input_names}
    inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    inputs["labels"] = ids.clone() if task == "causal-lm" else torch.zeros(2, dtype=torch.int64)
    return inputs


def untrained(model: nn.Module, new: Sequence[str]) -> tuple[str, ...]:
    """New (random) parameters that no rule trains: worth a word to the user."""
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return tuple(name for name in new if name not in trainable and name in dict(model.named_parameters()))
