"""The pass that reads written-out attention whose scores take a longer way than the plain spelling's.

Between the product of queries and keys and the softmax, models scale, add biases and masks, cap, cast and reshape.
All of it but a cap is affine in the scores, so it is one factor and one mask that is added. Longer than most files here:
one way back from a softmax and the call that stands for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from peftc.capture.attention import attention_call
from peftc.capture.calls import made
from peftc.capture.heads import LAYOUT, flat_heads, source_of_flat, turns
from peftc.capture.sinks import leaves_out_the_last, maximum_of, sink_of
from peftc.graphs.reading import (
    CONSTANT,
    argument,
    is_call,
    is_tensor,
    module_path,
    operator_name,
    place,
    shape,
    value,
)
from peftc.passes import PassResult

aten = torch.ops.aten
PRODUCTS = ("matmul", "bmm", "baddbmm")
SOFTMAX = ("softmax", "_softmax")
ALONG = (*LAYOUT, "flatten", "unflatten")
SAME = ("to", "type_as", "_to_copy", "contiguous", "clone", "alias", "float", "detach")
HIDES = -1e4  # a score at or below this is of a key that is not seen


class Unread(Exception):  # noqa: N818 - no error: says why a softmax is none of an attention that is read here
    """Why a softmax is left as it is."""


@dataclass
class Way:
    """What happens to the scores from the product to the softmax.

    Attributes:
        product: the node that makes the scores.
        steps: (node, position of the scores among its arguments), first to last.
    """

    product: fx.Node
    steps: list[tuple[fx.Node, int]]


@dataclass
class Read:
    """A way as one factor, one cap and one added mask.

    Attributes:
        factor: what the scores are multiplied with.
        by: tensors that queries are multiplied with, as (operator, tensor).
        inside: what they were multiplied with when a tanh was taken; None without one. The factor is its cap then.
        bias: what is added to the scores, in four axes.
        hidden: the conditions that hide a key, each where it was met.
        sink: one more score of each query, in four axes.
    """

    factor: float = 1.0
    by: list[tuple[Any, fx.Node]] = field(default_factory=list)
    inside: float | None = None
    bias: fx.Node | None = None
    hidden: list[fx.Node] = field(default_factory=list)
    sink: fx.Node | None = None


@dataclass
class Behind:
    """What happens to the weights from the softmax to the product with the values.

    Attributes:
        product: that product.
        dropout: the one in front of it.
        filled: conditions by which weights are made 0.
        cut: whether the last weight of each query is left out, as that of a sink is.
        cleaned: whether weights of a query that sees nothing are made 0.
    """

    product: fx.Node
    dropout: fx.Node | None = None
    filled: list[fx.Node] = field(default_factory=list)
    cut: bool = False
    cleaned: bool = False


@dataclass(frozen=True)
class ReadScores:
    """A softmax between two products of values is attention, whatever is added to its scores on the way."""

    optional: ClassVar[bool] = True

    def run(self, graph: fx.Graph) -> PassResult:
        """Replace what can be read; what was covered is left for `RemoveDeadCode`."""
        changed, attentions, others = 0, list[str](), list[str]()
        for node in list(graph.nodes):
            if not is_call(node, *SOFTMAX) or not node.users or not is_tensor(node.args[0]):
                continue
            try:
                replace(graph, node)
                changed += 1
            except Unread as why:
                kept = attentions if is_softmax_of_scores(node) else others
                kept.append(f"{node.name} in {module_path(node) or 'the model itself'}: {why}")
        return PassResult(changed, (*attentions, *others)[:5])


def is_softmax_of_scores(node: fx.Node) -> bool:
    """Whether a node is a softmax over a product of values: that of a router, or of an output, is over one with a weight."""
    return is_call(node, *SOFTMAX) and is_tensor(node.args[0]) and leads(node.args[0])


def replace(graph: fx.Graph, softmax: fx.Node) -> None:
    """Put the fused call in the place of the product with the values.

    Raises:
        Unread: says why not.
    """
    if softmax.args[1] not in (-1, value(softmax).dim() - 1):
        raise Unread("not over the last axis")
    way = way_to(softmax.args[0])  # type: ignore[arg-type]
    behind = way_from(softmax)
    query, key_t = operands(way.product)
    values = behind.product.args[1]
    heads, axes = heads_in_batch(way.product, query), value(way.product).dim()
    if not is_tensor(values) or value(values).dim() != value(behind.product).dim():
        raise Unread("the products have other numbers of axes")
    if value(values).dim() != axes and not (
        heads and axes == 3
    ):  # heads got an axis of their own between the two
        raise Unread("the products have other numbers of axes")
    maker = Maker(graph, behind, way, heads)
    read = maker.read(way)
    if behind.cut != (read.sink is not None):
        raise Unread("one score more than there are keys, or one weight less")
    if any(condition not in read.hidden for condition in behind.filled):
        raise Unread("weights are hidden behind the softmax that were seen before it")
    maker.put(read, query, key_t, values)


def way_to(scores: fx.Node) -> Way:
    """The way back from the softmax to the product, through what is affine in the scores."""
    steps: list[tuple[fx.Node, int]] = []
    node = scores
    excused: set[fx.Node] = set()
    while True:
        if is_call(node, *PRODUCTS):
            return Way(node, steps[::-1])
        if len([user for user in node.users if user not in excused and not reads_form(user, node)]) != 1:
            raise Unread(f"{node.name} is read by others too")
        name = operator_name(node)
        if (maximum := maximum_of(node)) is not None:
            excused.add(maximum)
            position = 0
        elif (beside := sink_of(node)) is not None:
            steps.append((node, 0))
            node = beside[0]
            continue
        elif name in ("add", "sub"):
            position = which(node)
        elif name == "where":
            position = which(node, (1, 2))
        elif name in (
            "mul",
            "div",
            "masked_fill",
            "masked_fill_",  # left in place where what it writes into is read for its format
            "max",
            "maximum",
            "clamp",
            "clamp_min",
            "tanh",
            *ALONG,
            *SAME,
        ):
            position = 0 if name != "mul" else which(node)
        else:
            raise Unread(f"{name or node.op} at {node.name} is no way of scores")
        source = node.args[position]
        if not is_tensor(source):
            raise Unread(f"{node.name} reads no scores")
        steps.append((node, position))
        node = source


def reads_form(user: fx.Node, node: fx.Node) -> bool:
    """Whether a call reads nothing of a value but its format or its sizes."""
    return is_call(user, "type_as", "view_as", "expand_as") and user.args[0] is not node


def which(node: fx.Node, places: tuple[int, int] = (0, 1)) -> int:
    """Which argument of a sum, product or choice holds the scores: the one that a product is near of."""
    found = [place for place in places if is_tensor(node.args[place]) and leads(node.args[place])]  # type: ignore[arg-type]
    if len(found) != 1:
        raise Unread(f"{len(found)} sides of {node.name} are scores")
    return found[0]


def leads(node: fx.Node) -> bool:
    """Whether a node is a product of values, changed elementwise at most."""
    while True:
        if is_call(node, *PRODUCTS):
            return all(is_tensor(each) and each.op != "get_attr" for each in product_of(node))
        name = operator_name(node)
        if name in ("add", "sub", "mul", "where"):
            return any(is_tensor(each) and leads(each) for each in node.args)
        if name not in ("div", "masked_fill", "max", "tanh", *ALONG, *SAME):
            return False
        source = node.args[0]
        if not is_tensor(source):
            return False
        node = source


def way_from(softmax: fx.Node) -> Behind:
    """The way on from the softmax to the product with the values."""
    behind = Behind(softmax)
    while True:
        node = behind.product
        users = list(node.users)
        if len(users) != 1:
            raise Unread("the weights are read by others too")
        user = behind.product = users[0]
        if is_call(user, "matmul", "bmm") and user.args[0] is node:
            return behind
        if is_call(user, "dropout") and behind.dropout is None:
            behind.dropout = user
        elif is_call(user, "masked_fill") and number_of(user.args[2]) == 0:
            behind.filled.append(user.args[1])  # type: ignore[arg-type]
        elif leaves_out_the_last(user) and not behind.cut:
            behind.cut = True
        elif is_call(user, "nan_to_num") and argument(user, "nan") in (None, 0):
            behind.cleaned = True
        elif not is_call(user, *ALONG, *SAME):
            raise Unread(f"{user.name} reads the weights")


def product_of(product: fx.Node) -> tuple[Any, Any]:
    """What a product multiplies."""
    left, right = product.args[1:3] if is_call(product, "baddbmm") else product.args[:2]
    return left, right


def operands(product: fx.Node) -> tuple[fx.Node, fx.Node]:
    """Queries and turned keys of a product of scores."""
    left, right = product_of(product)
    if not is_tensor(left) or not is_tensor(right) or value(left).dim() != value(right).dim():
        raise Unread(f"{product.name} is no product of queries and keys")
    if value(left).dim() not in (3, 4):
        raise Unread(f"{product.name} has {value(left).dim()} axes")
    if left.op == "get_attr" or right.op == "get_attr":
        raise Unread(f"{product.name} is a product with a parameter")
    return left, right


def heads_in_batch(product: fx.Node, query: fx.Node) -> int | None:
    """Number of heads that lie flat in the batch; 0 for none, None where there is one head and no axis for it."""
    return 0 if value(product).dim() == 4 else flat_heads(query)


class Maker:
    """Puts nodes in front of one product with the values."""

    def __init__(self, graph: fx.Graph, behind: Behind, way: Way, heads: int | None) -> None:
        self.graph, self.behind, self.way, self.heads = graph, behind, way, heads
        self.at = behind.product
        self.score_dtype = value(way.product).dtype
        self.groups: tuple[int, ...] = ()

    def make(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """One call, with what tracing would have seen of it."""
        with self.graph.inserting_before(self.at):
            return made(self.graph, self.at, target, *args, **kwargs)

    def read(self, way: Way) -> Read:
        """The steps as one factor, one cap and one mask."""
        read = Read()
        if is_call(way.product, "baddbmm"):
            read.factor = float(argument(way.product, "alpha", 1))
            if argument(way.product, "beta", 1) != 0:
                term = self.scaled(way.product.args[0], float(argument(way.product, "beta", 1)))  # type: ignore[arg-type]
                read.bias = self.lined_up(term, 3)
        for node, position in way.steps:
            self.step(read, node, position)
        return read

    def step(self, read: Read, node: fx.Node, position: int) -> None:
        """One step."""
        name = operator_name(node)
        if name in SAME or maximum_of(node) is not None:
            return
        if read.sink is not None:
            raise Unread(f"{node.name} changes a sink")
        if (beside := sink_of(node)) is not None:
            read.sink = self.lined_up(beside[1], value(node).dim())
        elif name in ALONG:
            self.reshape(node)
        elif name in ("mul", "div"):
            self.multiply(read, node, node.args[1 - position])
        elif name in ("add", "sub"):
            self.sum(read, node, position)
        elif name == "tanh":
            if read.bias is not None or read.inside is not None:
                raise Unread(f"{node.name} caps biased scores")
            read.inside, read.factor = read.factor, 1.0
        elif name in ("where", "masked_fill", "masked_fill_"):
            self.hide(read, node, position)
        else:
            least = node.args[1] if len(node.args) > 1 else argument(node, "min")
            if not hides(least) or (name == "clamp" and argument(node, "max") is not None):
                raise Unread(f"{node.name} cuts scores")

    def reshape(self, node: fx.Node) -> None:
        """Between scores with and without an axis of heads of their own; nothing else is read."""
        source: Any = node.args[0]
        before, after = value(source).dim(), value(node).dim()
        if (before, after) == (4, 5) and is_unflattened(shape(source), shape(node)):
            self.groups = shape(node)[1:3]
            return
        if after not in (3, 4) or (before != after and self.heads is None):
            raise Unread(f"{node.name} changes the axes of the scores")
        if before == after and shape(source) != shape(node):
            raise Unread(f"{node.name} regroups the scores")

    def sum(self, read: Read, node: fx.Node, position: int) -> None:
        """One more term."""
        other = node.args[1 - position]
        if argument(node, "alpha", 1) != 1 or (operator_name(node) == "sub" and position == 1):
            raise Unread(f"{node.name} is no plain sum")
        if isinstance(other, fx.Node):
            term = self.make(aten.neg.default, other) if operator_name(node) == "sub" else other
            if not value(term).dtype.is_floating_point:  # as a mask it would hide, here it is a number
                term = self.make(aten.to.dtype, term, self.score_dtype)
            self.add(read, self.lined_up(term, value(node).dim()))
        elif other != 0:
            raise Unread(f"{node.name} adds a number")

    def multiply(self, read: Read, node: fx.Node, other: Any) -> None:
        """A factor: a number, or a tensor that is the same for all keys."""
        divides = operator_name(node) == "div"
        if argument(node, "rounding_mode") is not None:
            raise Unread(f"{node.name} rounds")
        if isinstance(other, (int, float)):
            number = 1 / other if divides else float(other)
            read.factor *= number
            if read.bias is not None:
                read.bias = self.scaled(read.bias, number)
            return
        if (
            not isinstance(other, fx.Node)
            or not is_tensor(other)
            or read.inside is not None
            or read.bias is not None
        ):
            raise Unread(f"{node.name} is no plain factor")
        sizes = value(other).shape
        if len(sizes) and sizes[-1] != 1:
            raise Unread(f"{node.name} has a factor for each key")
        if value(node).dim() == 5:
            other = self.without_groups(other)
        read.by.append((aten.div.Tensor if divides else aten.mul.Tensor, other))

    def scaled(self, term: fx.Node, number: float) -> fx.Node:
        """A term times a number."""
        return term if number == 1 else self.make(aten.mul.Tensor, term, number)

    def add(self, read: Read, term: fx.Node) -> None:
        """One more term of the bias."""
        read.bias = term if read.bias is None else self.make(aten.add.Tensor, read.bias, term)

    def hide(self, read: Read, node: fx.Node, position: int) -> None:
        """`where(seen, scores, low)`, `where(hidden, low, scores)` or `masked_fill(scores, hidden, low)`."""
        chosen = operator_name(node) == "where"
        seen_first = chosen and position == 1
        condition, low = (node.args[0], node.args[3 - position]) if chosen else (node.args[1], node.args[2])
        if not hides(low) or not is_tensor(condition):
            raise Unread(f"{node.name} fills scores with what hides nothing")
        read.hidden.append(condition)
        lined = self.lined_up(condition, value(node).dim())
        number = constant_of(low) if isinstance(low, fx.Node) else low
        hidden = self.make(aten.logical_not.default, lined) if seen_first else lined
        bias = read.bias
        if bias is None:
            bias = self.make(aten.zeros_like.default, hidden, dtype=self.score_dtype)
        read.bias = self.make(aten.masked_fill.Scalar, bias, hidden, number)

    def lined_up(self, term: fx.Node, axes: int) -> fx.Node:
        """A term of scores with `axes` axes, in four."""
        held = value(term)
        if held.dim() < 2:
            return self.make(aten.reshape.default, term, [1, -1])
        if axes == 4:
            return term
        if axes == 5:
            return self.without_groups(term)
        if self.heads is None:  # one head without an axis
            return self.make(aten.unsqueeze.default, term, -3) if held.dim() == 3 else term
        if held.dim() < 3:
            return term
        if isinstance(held.shape[0], int) and held.shape[0] == 1:
            return self.make(aten.unsqueeze.default, term, 1)
        return self.make(aten.unflatten.int, term, 0, [-1, self.heads])

    def without_groups(self, term: fx.Node) -> fx.Node:
        """A term of scores [batch groups heads queries keys] with one axis for groups and heads."""
        if value(term).dim() == 2:
            return term
        while value(term).dim() < 5:
            term = self.make(aten.unsqueeze.default, term, 0)
        if shape(term)[1:3] == (1, 1):
            return self.make(aten.squeeze.dim, term, 1)
        wide = self.make(aten.expand.default, term, [-1, *self.groups, -1, -1])
        return self.make(aten.flatten.using_ints, wide, 1, 2)

    def four(self, node: fx.Node) -> fx.Node:
        """Queries, keys or values [batch heads length width]."""
        if value(node).dim() == 4:
            return node
        if self.heads is None:
            return self.make(aten.unsqueeze.default, node, 1)
        source = source_of_flat(node)
        return source if source is not None else self.make(aten.unflatten.int, node, 0, [-1, self.heads])

    def put(self, read: Read, query: fx.Node, key_t: fx.Node, values: fx.Node) -> None:
        """The fused call in place of the product with the values."""
        keys = key_t.args[0] if turns(key_t) else self.make(aten.transpose.int, key_t, -1, -2)
        query, keys, values = self.four(query), self.four(keys), self.four(values)  # type: ignore[arg-type]
        for operation, factor in read.by:
            query = self.make(operation, query, self.lined_up(factor, value(self.way.product).dim()))
        if value(query).dtype != value(values).dtype:  # scores were made in a wider format than values
            query, keys = (
                self.make(aten.to.dtype, each, value(values).dtype)
                if value(each).dtype != value(values).dtype
                else each
                for each in (query, keys)
            )
        bias = read.bias
        if read.sink is not None:
            keys, values, bias = self.with_sink(keys, values, bias, read.sink)
        if bias is not None:
            if self.behind.filled:
                low = self.make(aten.le.Scalar, bias, HIDES)
                bias = self.make(aten.masked_fill.Scalar, bias, low, float("-inf"))
            if value(bias).dtype not in (torch.bool, value(query).dtype):
                bias = self.make(aten.to.dtype, bias, value(query).dtype)
        scale, cap = read.factor, None
        if read.inside is not None:
            scale, cap = read.inside * read.factor, read.factor
        dropped = self.behind.dropout
        with self.graph.inserting_before(self.at):
            told = None if dropped is None else (dropped.args[1], dropped.args[2])
            new = attention_call(self.graph, (query, keys, values), bias, scale, told, cap)  # type: ignore[arg-type]
        new.meta.update(place(self.at))
        seen = value(query).new_empty((*value(query).shape[:3], value(values).shape[-1]))
        new.meta["val"] = seen
        if self.behind.cleaned:  # whatever a kernel makes of a query that sees nothing
            new = self.make(aten.nan_to_num.default, new)
        if value(self.at).dim() == 3:
            new = (
                self.make(aten.squeeze.dim, new, 1)
                if self.heads is None
                else self.make(aten.flatten.using_ints, new, 0, 1)
            )
        if value(new).dtype != value(self.at).dtype:
            new = self.make(aten.to.dtype, new, value(self.at).dtype)
        self.at.replace_all_uses_with(new)

    def with_sink(
        self, keys: fx.Node, values: fx.Node, bias: fx.Node | None, sink: fx.Node
    ) -> tuple[fx.Node, fx.Node, fx.Node]:
        """Keys, values and what is added to scores, with a key and a value of zeros whose score is the sink."""
        if bias is None:
            first = self.make(aten.slice.Tensor, keys, 3, 0, 1)
            bias = self.make(aten.to.dtype, self.make(aten.transpose.int, first, 2, 3), self.score_dtype)
            bias = self.make(aten.zeros_like.default, bias)
        wide = self.make(aten.add.Tensor, bias, self.make(aten.zeros_like.default, sink))
        longer = [
            self.make(
                aten.cat.default,
                [each, self.make(aten.zeros_like.default, self.make(aten.slice.Tensor, each, 2, 0, 1))],
                2,
            )
            for each in (keys, values)
        ]
        return longer[0], longer[1], self.make(aten.cat.default, [wide, sink], -1)


def is_unflattened(before: tuple[Any, ...], after: tuple[Any, ...]) -> bool:
    """Whether a form is another with its second axis as two."""
    return before == (after[0], after[1] * after[2], *after[3:])


def constant_of(node: fx.Node) -> float | None:
    """The number that a node holds, where it is known before anything runs."""
    while is_call(node, "detach", "to", "lift_fresh_copy", "clone", "alias"):
        node = node.args[0]  # type: ignore[assignment]
    if is_call(node, "full"):
        number = node.args[1]
        return float(number) if isinstance(number, (int, float)) else None
    if is_call(node, "scalar_tensor"):
        return float(node.args[0])  # type: ignore[arg-type]
    held = node.meta.get(CONSTANT)
    return float(held) if isinstance(held, Tensor) and held.numel() == 1 else None


def number_of(held: object) -> object:
    """The number that an argument is, where it is known before anything runs."""
    return constant_of(held) if isinstance(held, fx.Node) else held


def hides(low: object) -> bool:
    """Whether a score of this value is of a key that is not seen."""
    low = number_of(low)
    return isinstance(low, (int, float)) and low <= HIDES
