"""The projections that make a model's output."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from torch import fx
from torch.utils import _pytree as pytree

from peftc.analyse.channels import MOVES, SPLITS, is_elementwise
from peftc.analyse.norms import NORMS
from peftc.analyse.projections import Projection
from peftc.analyse.streams import is_residual
from peftc.analyse.structure import block_of
from peftc.graphs.reading import is_call, is_parameter, is_tensor, operator_name, shape

MOVED = MOVES | SPLITS | set("getitem cat stack concat hstack vstack index gather index_select".split())
REDUCTIONS = "sum mean amax amin max min logsumexp prod std var norm linalg_vector_norm".split()
CHOICES = "softmax _softmax log_softmax _log_softmax where masked_fill cumsum topk sort argmax".split()
LOSSES = (
    "cross_entropy_loss nll_loss nll_loss_nd nll_loss2d mse_loss l1_loss smooth_l1_loss huber_loss kl_div "
    "binary_cross_entropy binary_cross_entropy_with_logits ctc_loss _ctc_loss multi_margin_loss "
    "multilabel_margin_loss soft_margin_loss".split()
)
NORMED = (*NORMS, "native_layer_norm", "instance_norm")
COMPUTED = {*REDUCTIONS, *CHOICES, *LOSSES, *NORMED}
"""What may be behind a head, besides functions of each number."""
PRODUCTS = ("mul", "div")
NOTHING: frozenset[fx.Node] = frozenset()


def is_given(node: object) -> bool:
    """Whether a value is an input of the graph, at most moved."""
    while isinstance(node, fx.Node) and operator_name(node) in MOVES:
        node = node.args[0]
    return isinstance(node, fx.Node) and node.op == "placeholder"


def is_scaled(node: fx.Node) -> bool:
    """Whether a value is another times a number."""
    return is_call(node, "mul", "div") and isinstance(node.args[1], (int, float))


def is_shifted(node: fx.Node) -> bool:
    """Whether a value is another and a bias of the model's own."""
    return is_call(node, "add") and any(each.op == "get_attr" for each in node.all_input_nodes)


def is_capped(node: fx.Node) -> bool:
    """Whether a value is the middle of a cap: a tanh between a quotient and a product. Poolers end with a tanh alone."""
    return is_call(node, "tanh") and all(is_scaled(each) for each in (*node.users, *node.all_input_nodes))


class Heads:
    """Finds the last linear maps before the outputs of a graph.

    Behind them is nothing but movement, functions of each number, norms without weights, reductions, masks and losses:
    what goes on to a sum with a stream, to another product or to a norm with a weight makes hidden states.

    Args:
        blocks: path of each block; what lies in one is no head.
        others: projections that have parts which no head has, such as that of a router.
    """

    def __init__(
        self,
        graph: fx.Graph,
        projections: Mapping[fx.Node, Projection],
        blocks: Mapping[str, int],
        order: Mapping[fx.Node, int],
        others: Collection[fx.Node] = (),
    ) -> None:
        self.graph, self.projections, self.order = graph, projections, order
        self.known: dict[fx.Node, frozenset[fx.Node] | None] = {}
        for node, each in projections.items():
            stacked = bool(each.matrix.count)  # experts: rows find their own matrices
            hidden = stacked or block_of(node, blocks) is not None or node in others
            self.known[node] = self.known[each.result] = None if hidden else frozenset((node,))
        for node in graph.nodes:  # in order: sources come first
            if node not in self.known:
                self.known[node] = self.made_of(node)

    def found(self) -> Iterator[fx.Node]:
        """The heads."""
        output = next(node for node in self.graph.nodes if node.op == "output")
        leaves = [leaf for leaf in pytree.tree_leaves(output.args) if isinstance(leaf, fx.Node)]
        seen: set[fx.Node] = set()
        given: set[fx.Node] = set()
        while leaves:
            leaf = leaves.pop()
            if leaf in seen:
                continue
            seen.add(leaf)
            if is_tensor(leaf):
                given |= self.known[leaf] or NOTHING
            else:  # a structure that holds outputs
                leaves.extend(leaf.all_input_nodes)
        yield from (node for node in self.projections if node in given and self.ends(node))

    def made_of(self, node: fx.Node) -> frozenset[fx.Node] | None:
        """The heads that a value is made of; None for one that is made of anything hidden too."""
        if node.op in ("placeholder", "get_attr"):
            return NOTHING
        sides = [self.known[each] for each in node.all_input_nodes]
        if all(side is NOTHING for side in sides) and not any(map(is_parameter, node.all_input_nodes)):
            return NOTHING  # a size, or a mask
        if any(side is None for side in sides) or not self.follows(node):
            return None
        held = list(dict.fromkeys(side for side in sides if side))
        if is_call(node, *PRODUCTS) and len(held) > 1:
            return None  # one of them is a gate, or chooses
        if (
            held
            and is_call(node, *PRODUCTS)
            and any(self.is_let_through(each, node) for each in node.all_input_nodes)
        ):
            return None
        return NOTHING.union(*held) if held else NOTHING

    def is_let_through(self, side: fx.Node, product: fx.Node) -> bool:
        """Whether a side of a product is what the call gives, number by number: the other is its gate. No mask of tokens."""
        given = self.known[side] is NOTHING and is_tensor(side) and not is_parameter(side)
        return given and bool(shape(side)) and shape(side)[-1] == shape(product)[-1] != 1

    def follows(self, node: fx.Node) -> bool:
        """Whether an operator may be behind a head."""
        name, sources = operator_name(node), node.all_input_nodes
        if name in NORMED and any(map(is_parameter, sources)):
            return False
        if is_residual(node, self.order):
            return False
        moved = name in MOVED or is_scaled(node) or is_shifted(node) or is_capped(node)
        if not moved and any(self.keeps_width(head) for each in sources for head in self.known[each] or ()):
            return False
        return moved or name in COMPUTED or is_elementwise(node)

    def keeps_width(self, node: fx.Node) -> bool:
        """Whether a projection makes as many channels as it reads.

        Where a function of them follows, they are hidden states, as those of a pooler: classes have a number of their own.
        """
        return self.projections[node].d_in == self.projections[node].d_out

    def ends(self, head: fx.Node) -> bool:
        """Whether all that is made of a projection goes to outputs, or into one number, as a loss."""
        queue, seen = [self.projections[head].result], {head}
        while queue:
            node = queue.pop()
            if node.op == "output" or node in seen or (is_tensor(node) and not shape(node)):
                continue
            seen.add(node)
            if self.known[node] is None:
                return False
            queue.extend(node.users)
        return True
