"""The generated subclasses: a module of the model's own class whose forward runs captured programs."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from peftc.errors import StoreError
from peftc.match.plan import Plan
from peftc.rewrite import auxiliary_loss
from peftc.runtime.schedules import Schedules

if TYPE_CHECKING:
    from peftc.runtime.requantising import Requantising

generated: dict[tuple[type[nn.Module], type[nn.Module] | None], type[nn.Module]] = {}


def generated_class(kind: type[nn.Module], root: type[CompiledModule] | None = None) -> type[nn.Module]:
    """`CompiledX(X)` for a module class X; the root module's also has the methods of `root`."""
    key = (kind, root)
    if key not in generated:
        bases = (CompiledBlock, kind) if root is None else (root, kind)
        body = {
            "forward": forward_like(kind),
            "__module__": kind.__module__,
            "__doc__": f"{kind.__name__}, compiled by peftc: runs captured programs.",
        }
        generated[key] = type(f"Compiled{kind.__name__}", bases, body)
    return generated[key]


def forward_like(kind: type[nn.Module]) -> Any:
    """A forward with the signature of `kind`'s own, which callers such as `generate` and `Trainer` read."""

    def forward(self: Any, *args: Any, peftc_template: int | None = None, **kwargs: Any) -> Any:
        engine = self._peftc
        if peftc_template is not None:
            return engine.templates.functions[peftc_template](self, *args)
        return engine.run(self._peftc_path, self, args, kwargs)

    functools.update_wrapper(forward, kind.forward)
    return forward


class CompiledBlock(nn.Module):
    """What every generated class inside a compiled module does before its model's own class does."""

    _peftc: Any

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module; where asked for, with an input that wants a gradient.

        Reentrant checkpointing gives no gradient to parameters under inputs that want none, and below the first
        trainable parameter of a model nothing does.
        """
        if self._peftc.inputs_require_grads and torch.is_grad_enabled():
            tensors = [arg for arg in args if isinstance(arg, Tensor) and arg.is_floating_point()]
            if tensors and not any(tensor.requires_grad for tensor in tensors):
                tensors[0].requires_grad_()
        return super().__call__(*args, **kwargs)


class CompiledModule(nn.Module):
    """What a compiled module can do besides what its model's own class can."""

    _peftc: Any  # an Engine; model classes evaluate their subclasses' annotations, so it is not named here

    @property
    def peftc_plan(self) -> Plan:
        """The plan that this module carries out."""
        plan: Plan = self._peftc.plan
        return plan

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Inside, the module computes what the original model does, its weights in as few bits as rules keep them in.

        Bit for bit, but for what a spelling recognises within rounding (docs/spellings.md): attention that the
        model writes out as a softmax, where a query that may see no key at all gets a finite value; products with
        a matrix that are no `linear`; and a gelu that is written out.
        """
        engine = self._peftc
        before = engine.enabled
        engine.enabled = False
        try:
            yield
        finally:
            engine.enabled = before

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy with weights of its own; the functions that run it are the same."""
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update({name: copy.deepcopy(value, memo) for name, value in self.__dict__.items()})
        return copied

    def __reduce_ex__(self, _protocol: Any) -> Any:
        """Refuses: generated classes and captured graphs cannot be found again by another process."""
        raise StoreError(
            f"a {type(self).__name__} cannot be pickled",
            hint="save_pretrained(folder) writes the adapter, peftc.load(model, folder) reads it",
        )

    def merge_and_unload(self, *, requantise: bool = False) -> nn.Module:
        """A plain model of the original class with the adapters in its weights. This module stays as it is.

        Weights that no rule changes share their storage with this module's. Weights that are kept in fewer bits are
        unpacked, the adapters added, and a warning says what packing them again would lose: see
        `requantising_loss`.

        Args:
            requantise: whether modules that came quantised are given back so, their weights packed again.

        Raises:
            MergeError: a rule is no change of weights, such as keys put in front of an attention's; names it. Or
                `requantise`, where modules did not come quantised.
        """
        from peftc.runtime.merging import merged_weights, plain_model
        from peftc.runtime.requantising import requantising

        weights = merged_weights(self, self.peftc_plan)
        model = plain_model(self, weights, requantise=requantise)
        if (lost := requantising(self, weights)).weights:
            warnings.warn(str(lost), stacklevel=2)
        return model

    def requantising_loss(self) -> Requantising:
        """What packing the merged weights into as few bits as they are kept in now would lose, weight by weight."""
        from peftc.runtime.merging import merged_weights
        from peftc.runtime.requantising import requantising

        return requantising(self, merged_weights(self, self.peftc_plan))

    def can_shrink(self) -> bool:
        """Whether a gate of some rule is 0 anywhere, so that `shrink` has something to take out."""
        from peftc.runtime.shrinking import has_zeros

        return has_zeros(self, self.peftc_plan)

    def shrink(self) -> nn.Module:
        """A compiled module like this one, without what gates have put to 0. This module stays as it is.

        Where a gate has an axis, its entries go from every parameter that has the axis; where nothing of a section
        is left at a site, the section goes. Outputs are equal. It is for after training: a schedule of parameters
        that became narrower does not go on.

        Raises:
            ShrinkError: no rule here has a gate, or nothing of any rule would be left.
        """
        from peftc.runtime.shrinking import shrunk_module

        return shrunk_module(self)

    def auxiliary_loss(self) -> Tensor:
        """What the rules add to the loss: a single number with a gradient, 0 where they add nothing.

        A training step's output has it in its `loss` already. Who computes a loss of their own adds this one.
        """
        return auxiliary_loss(self, self.peftc_plan)

    @property
    def schedules(self) -> Schedules:
        """The schedules of the rules; none of them runs by itself, see `update_schedules`."""
        schedules: Schedules = self._peftc.schedules
        return schedules

    def update_schedules(self, step: int, total: int) -> None:
        """Carry out what the rules do in the course of training.

        Call it with step 0 before training, and after every `optimizer.step()`, before `zero_grad()`, with the
        number of steps taken. `peftc finetune` does so; `peftc.finetune.schedules.RunSchedules` is a callback
        for a Trainer.

        Args:
            step: steps of the optimiser taken so far.
            total: all steps of this training.

        Raises:
            ScheduleError: the steps are too few, or gradients are missing.
        """
        self.schedules.update(self, step, total)

    def set_schedule(self, rule: str | None = None, /, **values: float | str) -> None:
        """Set what a schedule leaves to whoever uses the model, at any time: `set_schedule(dropped=3)`.

        It is part of the adapter, and saved with it. `peftc rules NAME` tells what there is to set.

        Args:
            rule: label of the rule, where several have a schedule with such a value.
            values: by the names that the schedules' policies give them.

        Raises:
            ScheduleError: no schedule has such a value, or it cannot be this one.
        """
        self.schedules.set(self, rule, values)

    def enable_input_require_grads(self) -> None:
        """Let the inputs of blocks want gradients, as reentrant checkpointing needs."""
        self._peftc.inputs_require_grads = True

    def disable_input_require_grads(self) -> None:
        """Undo `enable_input_require_grads`."""
        self._peftc.inputs_require_grads = False

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """(trainable, all) numbers of parameters."""
        plan = self.peftc_plan
        return plan.trainable_count, plan.total_count

    def print_trainable_parameters(self) -> None:
        """Print how many parameters train."""
        trainable, total = self.get_nb_trainable_parameters()
        percent = 100 * trainable / total
        # Printing is what this method is for, in the words of the library that made it known.
        print(f"trainable params: {trainable:,} || all params: {total:,} || trainable%: {percent:.4f}")  # noqa: T201
