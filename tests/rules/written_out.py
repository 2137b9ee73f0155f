"""Any rules of the library, one after the other, written into a plain model: by hooks that do their papers' equations.

A hook stands at a place that is named as the model names it, the linear map that makes queries or the one behind a
feed-forward network, and reads the parameters of a compiled model. Nothing here computes what peftc computes: each
equation is plain torch, and what several rules do at one place is done in the order in which they are given.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.rules.equations import ACTS, ROWS, Held, fronts, fusion, plain, register, two_layers
from tests.rules.references import Gate
from tests.rules.test_compacter import matrix
from tests.rules.test_loreft import edited
from tests.rules.updates import EQUATIONS, rotation

PLACES: Mapping[str, Mapping[str, str]] = {
    "decoder": {
        "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
        "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
        "attention": "self_attn", "block": r"layers.\d+", "norm": "post_attention_layernorm",
    },
    "encoder": {
        "q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value",
        "o": "attention.output.dense", "up": "intermediate.dense", "down": r"\d+.output.dense",
        "attention": "attention.self", "block": r"layer.\d+", "norm": r"\d+.output.LayerNorm",
    },
    "both": {
        "q": "Attention.q", "k": "Attention.k", "v": "Attention.v", "o": "Attention.o",
        "gate": "wi_0", "up": "wi_1", "down": "wo",
        "attention": "Attention", "block": r"block.\d+", "norm": r"layer.\d+.layer_norm",
    },
}  # fmt: skip
"""Kind of model → place → how the paths of the modules there end, as a pattern."""


def modules_at(model: nn.Module, kind: str, place: str) -> list[str]:
    """Paths of the modules at a place, in order."""
    end = re.compile(rf"(.*[.a-z])?{PLACES[kind][place]}", re.IGNORECASE)
    return [path for path, _ in model.named_modules() if end.fullmatch(path)]


class Edit:
    """What a rule does to one module: with its input, its output, or both. `x` is the input as the rule found it."""

    x: Tensor
    last = False

    def __init__(
        self,
        add: Callable[[Tensor, Tensor], Tensor] | None = None,
        turn: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.add, self.turn = add, turn


class Hooked:
    """A module with edits, first to last; `given` is what it was called with before any of them."""

    given: Tensor

    def __init__(self, module: nn.Module) -> None:
        self.module: Any = module
        self.edits: list[Edit] = []
        module.register_forward_pre_hook(self.before, with_kwargs=True)
        module.register_forward_hook(self.after)

    def before(self, _: nn.Module, args: Any, kwargs: Any) -> Any:
        x = args[0] if args else kwargs["hidden_states"]
        self.given = x
        for edit in self.edits:
            edit.x = x
            x = x if edit.turn is None else edit.turn(x)
        return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": x})

    def after(self, _: nn.Module, __: Any, out: Any) -> Any:
        y = out[0] if isinstance(out, tuple) else out
        for edit in self.edits:
            y = y if edit.add is None else edit.add(edit.x, y)
        return (y, *out[1:]) if isinstance(out, tuple) else y


class WrittenOut:
    """A copy of a plain model that computes the equations of a compiled one's rules, in the order of their labels.

    Attributes:
        touched: place → paths of the modules there at which a rule has parameters.
        real: scope → which tokens of its text are real in the present call.
    """

    def __init__(self, model: Any, kind: str, compiled: Any, labels: Sequence[str]) -> None:
        register()
        self.kind, self.compiled = kind, compiled
        self.real: Mapping[str, Tensor] = {}
        self.model: Any = copy.deepcopy(model)
        self.model.set_attn_implementation("written_out")
        self.hooked: dict[str, Hooked] = {}
        self.rows: list[Callable[[], Tensor]] = []
        self.touched: dict[str, list[str]] = {}
        self.share_trained()
        plan = compiled.peftc_plan
        for label in labels:
            bound = plan.bound(label)
            for each in plan.applications:
                if each.rule == label and bound.rule.name == "nf4":
                    self.pack(each.site.path)
                elif each.rule == label and each.parameters:
                    held = {made.name: compiled.get_parameter(made.path) for made in each.parameters}
                    self.put(bound.rule.name, each.site, held, bound.options)

    def share_trained(self) -> None:
        """What a rule trains of the model is the compiled one's own, under each of its names."""
        trained = {id(self.model.get_parameter(path)): path for path in self.compiled.peftc_plan.trained}
        for path, parameter in list(self.model.named_parameters(remove_duplicate=False)):
            if id(parameter) in trained:
                above, _, name = path.rpartition(".")
                own = self.compiled.get_parameter(trained[id(parameter)])
                self.model.get_submodule(above)._parameters[name] = own

    def pack(self, path: str) -> None:
        """A weight as bitsandbytes reads it out of the four bits that it writes."""
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit

        module: Any = self.model.get_submodule(path)
        weight = module.weight.detach()
        packed, state = quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
        module.weight = nn.Parameter(dequantize_4bit(packed, state), requires_grad=False)

    def put(self, name: str, site: Any, held: Held, options: Mapping[str, Any]) -> None:
        """One rule at one site."""
        if site.role == "linear":
            place, path = site.part, site.path
        elif site.role in ("ffn", "residual"):
            place = "o" if (site.role, site.part) == ("residual", "attention") else "down"
            path = self.nearest(place, site.path)
        else:
            place, path = site.role, site.path
        self.touched.setdefault(place, []).append(path)
        if site.role == "input":
            rows = ROWS[name]
            self.rows.append(lambda: rows(held, options))
        elif site.role == "attention":
            module: Any = self.model.get_submodule(path)
            own, front, gate = plain(held, "prefix_", "mlp_"), fronts(name, options), self.gate(held, site)
            read = Edit()  # a gate is of what queries are made of
            self.at(self.nearest("q", path)).edits.append(read)

            def in_front() -> tuple[Tensor, ...]:
                if gate is None:
                    return front(own)
                return tuple(gate(read.x)[:, None, None, None] * each for each in front(own))

            module.fronts = [*getattr(module, "fronts", ()), in_front]
        else:
            edit = self.edit(name, site, path, held, options)
            edit.last = site.role == "residual"
            self.at(path).edits.append(edit)
            # What a branch adds to the stream is what all others have made of it, whatever the order.
            self.at(path).edits.sort(key=lambda each: each.last)

    def at(self, path: str) -> Hooked:
        """The module at a path."""
        if path not in self.hooked:
            self.hooked[path] = Hooked(self.model.get_submodule(path))
        return self.hooked[path]

    def nearest(self, place: str, path: str) -> str:
        """The module at a place that has most of its path in common with another."""

        def common(other: str) -> int:
            same = [one == its for one, its in zip(path.split("."), other.split("."), strict=False)]
            return [*same, False].index(False)

        return max(modules_at(self.model, self.kind, place), key=common)

    def gate(self, held: Held, site: Any) -> Gate | None:
        """UniPELT's, over the real tokens of the text that is read here."""
        if "gate_w" not in held:
            return None
        read = "encoder" if site.scope == "cross" and site.part in ("k", "v") else site.scope
        return Gate(held["gate_w"], held["gate_b"], lambda: self.real[read])

    def edit(self, name: str, site: Any, path: str, held: Held, options: Mapping[str, Any]) -> Edit:
        """What a rule does to the module at a path."""
        module: Any = self.model.get_submodule(path)
        role = site.role
        if name == "oft":
            blocks = [rotation(row, int(options["block"]), int(options["terms"])) for row in held["S"]]
            return Edit(turn=lambda x: x @ torch.block_diag(*blocks))
        if name == "ia3":
            scaled = site.part != "down"
            return Edit(add=lambda _, y: held["l"] * y) if scaled else Edit(turn=lambda x: held["l"] * x)
        if name == "bitfit":
            return Edit(add=lambda _, y: y + held["b"])
        if name == "loreft":
            ends = int(options["first"]), int(options["last"])
            return Edit(add=lambda _, y: edited(y, dict(held), self.real[site.scope], *ends))
        if name == "unipelt" and role == "linear":
            gate = self.gate(held, site)
            assert gate is not None
            a, b = held["lora_A"], held["lora_B"]
            return Edit(add=lambda x, y: y + gate(x)[:, None, None] * (x @ a.T @ b.T))
        if name == "adalora":
            factor = options["alpha"] / options["rank"]
            p, singular, q = held["B"], held["E"], held["A"]
            return Edit(add=lambda x, y: y + factor * x @ (p @ torch.diag(singular) @ q).T)
        if (name, 0) in EQUATIONS:
            update = EQUATIONS[name, 0]

            def with_update(x: Tensor, y: Tensor) -> Tensor:
                none = x.new_zeros(module.weight.shape[0])
                out: Tensor = y + update(x, module.weight, none, held, options) - x @ module.weight.T
                return out

            return Edit(add=with_update)
        return Edit(add=self.network(name, site, path, held, options))

    def network(
        self, name: str, site: Any, path: str, held: Held, options: Mapping[str, Any]
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """Of the methods that put a small network behind or beside a large one."""
        role = site.role
        if name == "compacter":
            down, up = (matrix(held["A"], held[f"{end}_s"], held[f"{end}_t"]) for end in ("down", "up"))
            made = {"down_w": down, "down_b": held["down_b"], "up_w": up, "up_b": held["up_b"]}
            return lambda _, y: y + two_layers(y, made, lambda x: functional.gelu(x, approximate="tanh"))
        if name == "houlsby":
            own = plain(held, "attention_", "ffn_")
            return lambda _, y: y + two_layers(y, own, functional.gelu)
        if name == "pfeiffer" and self.kind == "encoder":  # of a norm of its sum with the stream
            norm: Any = self.model.get_submodule(self.nearest("norm", path))
            stream = self.at(self.nearest("up", path))

            def normed(_: Tensor, y: Tensor) -> Tensor:
                return y + two_layers(norm(y + stream.given), held, functional.relu)

            return normed
        if name == "pfeiffer" and options["reads"] == "sum":
            before = self.at(self.nearest("norm", path))
            return lambda _, y: y + two_layers(y + before.given, held, functional.relu)
        if name == "pfeiffer":
            return lambda _, y: y + two_layers(y, held, functional.relu)
        if name == "adapter_fusion":
            return lambda _, y: y + fusion(y, plain(held, "fusion_"))
        if name not in ("bottleneck", "parallel", "mam", "unipelt", "adapter_drop"):
            raise NotImplementedError(f"the equation of {name} is written out nowhere here")
        own = plain(held, "bottleneck_", "attention_")
        told = {option.removeprefix("bottleneck_"): value for option, value in options.items()}
        scale, act, gate = told.get("scale", 1.0), ACTS[told.get("act", "relu")], self.gate(held, site)
        first = self.at(self.nearest("q" if role == "residual" else "up", path))
        # While a robust adapter is not training, all that counts is whether its layer is kept.
        kept = own.get("kept", torch.ones(()))

        def added(_: Tensor, y: Tensor) -> Tensor:
            source = first.given if name in ("parallel", "mam") else y
            share = y.new_ones(len(y)) if gate is None else gate(source)
            whole: Tensor = y + kept * scale * share[:, None, None] * two_layers(source, own, act)
            return whole

        return added

    def __call__(self, **given: Any) -> Tensor:
        """Logits of the tokens."""
        given = dict(given)
        given.pop("labels", None)
        ids = given["input_ids"]
        mask = given.get("attention_mask", torch.ones_like(ids))
        said = given.get("decoder_input_ids", ids)
        fronts = [rows() for rows in reversed(self.rows)]
        count = sum(len(rows) for rows in fronts)
        text = torch.cat([mask.new_zeros(len(ids), count), mask], 1)
        self.real = {
            "": text,
            "encoder": text,
            "decoder": torch.ones_like(said),
            "cross": torch.ones_like(said),
        }
        if fronts:
            embedded = self.model.get_input_embeddings()(given.pop("input_ids"))
            before = [rows.expand(len(ids), -1, -1) for rows in fronts]
            given["inputs_embeds"] = torch.cat([*before, embedded], 1)
            given["attention_mask"] = torch.cat([mask.new_ones(len(ids), count), mask], 1)
        uses = {} if self.kind == "encoder" else {"use_cache": False}
        logits: Tensor = self.model(**given, **uses).logits
        return logits[:, count:] if self.kind == "decoder" else logits
