"""Operators of peftc's own that stand in normalised graphs. Each is made of torch calls and nothing else.

They exist so that rules and analyses see one spelling of a thing that models spell in many ways, while the
numbers stay those of the spelling that was captured, bit for bit.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor | None, eps: float, compute: torch.dtype | None = None) -> Tensor:
    """Root-mean-square norm over the last axis (https://arxiv.org/abs/1910.07467).

    Args:
        x: [... d], any floating dtype.
        weight: [d], or None.
        eps: added to the mean square.
        compute: dtype in which the mean square is taken; the result is cast back before `weight` is applied.
    """
    wide = x if compute is None else x.to(compute)
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    if compute is not None:
        normed = normed.to(x.dtype)
    return normed if weight is None else weight * normed


def causal_mask(query: Tensor, key: Tensor) -> Tensor:
    """Boolean mask [queries keys]: True where a key is not later than the query, counted from the start."""
    queries, keys = query.shape[-2], key.shape[-2]
    rows = torch.arange(queries, device=query.device).unsqueeze(1)
    return torch.arange(keys, device=query.device).unsqueeze(0) <= rows


def capped_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    cap: float,
) -> Tensor:
    """Softmax attention whose scores are capped, cap · tanh(scores / cap), before a mask is added to them.

    The arguments are those of `scaled_dot_product_attention`, axes [batch heads length width].
    """
    if enable_gqa:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    scores = cap * torch.tanh(scores / cap)
    if is_causal:
        attn_mask = causal_mask(query, key)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    elif attn_mask is not None:
        scores = scores + attn_mask
    weights = torch.softmax(scores, -1, dtype=torch.float32).to(query.dtype)
    return torch.dropout(weights, dropout_p, dropout_p > 0) @ value


def full_mask(query: Tensor, key: Tensor) -> Tensor:
    """Boolean mask [queries keys] that hides nothing."""
    return torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device)


def in_window(seen: Tensor, length: int, window: int) -> Tensor:
    """Boolean mask [... queries length] of keys in front: True where a query has them among its last `window` keys.

    The last query stands at the last key; but one that sees no key so late, as where a cache has places that are not
    filled yet, at the last that it sees. Where older keys were thrown away, as they fell out of the window, this puts
    queries too near to the front; but then every one of them is further from it than the window is wide.
    """
    queries, keys = seen.shape[-2:]
    numbers = torch.arange(keys, dtype=torch.int32, device=seen.device)
    last = (seen * numbers).amax(-1, keepdim=True)
    places = torch.minimum(last, numbers[keys - queries :].unsqueeze(1))
    return places - torch.arange(-length, 0, device=seen.device) < window


def open_mask(mask: Tensor, length: int, window: int = 0) -> Tensor:
    """A mask [... queries keys] with `length` keys in front that every query sees, or that has them in its window.

    In a mask that is added to scores, they get the largest number of their query's row: 0 where a mask only hides. Where it
    holds biases of positions, softmax takes no notice of what is added to a whole row, and models make use of that (a bias
    may be counted from the last key): a constant in front would be worth more or less as a text grows.
    """
    if mask.dtype == torch.bool and not window:
        return torch.nn.functional.pad(mask, (length, 0), value=True)
    if mask.dtype == torch.bool:
        return torch.cat([in_window(mask, length, window).expand(*mask.shape[:-1], length), mask], -1)
    best = mask.amax(-1, keepdim=True)
    best = best.where(best > torch.finfo(mask.dtype).min / 2, 0.0)  # a row that hides every key
    best = best.expand(*mask.shape[:-1], length)
    if window:
        hidden = torch.finfo(mask.dtype).min
        best = best.where(in_window(mask > hidden / 2, length, window), hidden)
    return torch.cat([best, mask], -1)


def filled(like: Tensor, shape: tuple[int, ...], value: float) -> Tensor:
    """A tensor of one number, in the dtype and on the device of another."""
    return like.new_full(shape, value)


def take_channels(x: Tensor, ranges: tuple[tuple[int, int], ...]) -> Tensor:
    """The channels of x [... channels] in some ranges, side by side."""
    return take_along(x, ranges, -1)


def take_along(x: Tensor, ranges: tuple[tuple[int, int], ...], axis: int) -> Tensor:
    """What of x lies in some ranges along an axis, one after the other."""
    if step := stride_of(ranges, x.shape[axis]):
        (start, stop), at = ranges[0], axis % x.dim()
        own: Tensor = x.unflatten(at, (-1, step)).narrow(at + 1, start, stop - start).flatten(at, at + 1)
        return own
    pieces = [x.narrow(axis, start, stop - start) for start, stop in ranges]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, axis)


def stride_of(ranges: tuple[tuple[int, int], ...], size: int) -> int:
    """How far apart ranges stand that are each the same piece of equal pieces of an axis; 0 for any others.

    One slice then does for all of them: interleaved halves of a wide product would be thousands.
    """
    if len(ranges) < 3 or size % len(ranges):
        return 0
    step, (first, last) = size // len(ranges), ranges[0]
    regular = tuple((first + at * step, last + at * step) for at in range(len(ranges)))
    return step if ranges == regular and last <= step else 0


def add_loss(loss: Tensor, more: Tensor) -> Tensor:
    """A model's loss and what rules add to it, in the dtype and on the device of the loss."""
    return loss + more.to(loss)


def put_channels(x: Tensor, new: Tensor, ranges: tuple[tuple[int, int], ...]) -> Tensor:
    """x [... channels] with the channels of some ranges replaced by `new`, as `take_channels` orders them."""
    if step := stride_of(ranges, x.shape[-1]):
        (start, stop), whole = ranges[0], x.unflatten(-1, (-1, step))
        own = new.unflatten(-1, (-1, stop - start))
        return torch.cat([whole[..., :start], own, whole[..., stop:]], -1).flatten(-2)
    pieces, last, taken = [], 0, 0
    for start, stop in ranges:
        pieces += [x[..., last:start], new[..., taken : taken + stop - start]]
        last, taken = stop, taken + stop - start
    pieces.append(x[..., last:])
    return torch.cat([piece for piece in pieces if piece.shape[-1]], -1)


def repeat_like(x: Tensor, like: Tensor, missing: tuple[int, ...]) -> Tensor:
    """x with size-1 axes at the positions `missing` repeated to the sizes that `like` has there."""
    sizes = [like.shape[axis] if axis in missing else -1 for axis in range(like.dim())]
    return x.expand(sizes)


def repeat_for(x: Tensor, like: Tensor, axis: int) -> Tensor:
    """x once for each entry of an axis of `like`, along a new first axis."""
    return x.expand(like.shape[axis], *x.shape)


def rms_normalize(x: Tensor, axis: int, eps: float) -> Tensor:
    """x over the root of its mean square along one axis."""
    return x * torch.rsqrt(x.pow(2).mean(axis, keepdim=True) + eps)


def layer_normalize(x: Tensor, axis: int, eps: float) -> Tensor:
    """x with mean 0 and variance 1 along one axis."""
    centred = x - x.mean(axis, keepdim=True)
    return centred * torch.rsqrt(centred.pow(2).mean(axis, keepdim=True) + eps)


def gelu_tanh(x: Tensor) -> Tensor:
    """x · (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2, which approximates gelu."""
    return torch.nn.functional.gelu(x, approximate="tanh")


def quick_gelu(x: Tensor) -> Tensor:
    """x · sigmoid(1.702 x), any shape."""
    return x * torch.sigmoid(1.702 * x)


def sum_over(x: Tensor, counts: Tensor, axis: int) -> Tensor:
    """The sum of x along one axis, of those alone for which `counts` (lined up with x) is 1."""
    return (x * counts.to(x.dtype)).sum(axis)


def mean_over(x: Tensor, counts: Tensor, axis: int) -> Tensor:
    """The mean of x along one axis, over those alone for which `counts` is 1; 0 where there are none."""
    number = counts.to(x.dtype).sum(axis)
    return sum_over(x, counts, axis) / number.clamp(min=1)


def cayley(x: Tensor) -> Tensor:
    """The orthogonal (1 − S)⁻¹ (1 + S) of S = (x − xᵀ) / 2, x [... n n]; 1 where x is 0."""
    wide = widened(x)
    skew = (wide - wide.transpose(-1, -2)) / 2
    one = torch.eye(x.shape[-1], dtype=wide.dtype, device=x.device)
    rotation: Tensor = torch.linalg.solve(one - skew, one + skew)
    return rotation.to(x.dtype)


def cayley_series(x: Tensor, terms: int) -> Tensor:
    """The first terms 1 + 2 S + 2 S² + … of `cayley`'s series, the last one once: its rest is as large again."""
    skew = (x - x.transpose(-1, -2)) / 2
    power = identity_like(x)
    total = power
    for term in range(1, terms):
        power = power @ skew if term > 1 else skew
        total = total + (power if term == terms - 1 > 1 else 2 * power)
    return total


def skew(x: Tensor, size: int) -> Tensor:
    """x [... pairs] above the diagonal of [... size size], row by row, and −x below it."""
    rows, columns = torch.triu_indices(size, size, 1, device=x.device)
    places = torch.zeros(size, size, dtype=torch.long, device=x.device)
    places[rows, columns] = torch.arange(rows.shape[0], device=x.device)
    upper = x[..., places].triu(1)
    return upper - upper.transpose(-1, -2)


def widened(x: Tensor) -> Tensor:
    """x in single precision, if it has less: decompositions know no other."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def softmax_over(x: Tensor, counts: Tensor, axis: int) -> Tensor:
    """Softmax of x along one axis, over those alone for which `counts` is not 0; all 0 where there are none."""
    kept = counts != 0
    # The largest number is taken off so that nothing overflows; where nothing counts it is made finite.
    largest = x.masked_fill(~kept, float("-inf")).amax(axis, keepdim=True).clamp(min=torch.finfo(x.dtype).min)
    raised = (x - largest.detach()).masked_fill(~kept, float("-inf")).exp()
    return raised / raised.sum(axis, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)


def identity_like(x: Tensor) -> Tensor:
    """The identity matrix over the last two axes of x [... n n], in its dtype."""
    return torch.eye(x.shape[-1], dtype=x.dtype, device=x.device).expand(x.shape)


def orthogonal(x: Tensor) -> Tensor:
    """Orthonormal columns of x [... m n], m ≥ n, as Gram and Schmidt make them: x = Q R with R's diagonal above 0."""
    q, r = torch.linalg.qr(widened(x))
    sign = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(q.dtype)
    columns: Tensor = q * sign.unsqueeze(-2)
    return columns.to(x.dtype)


def at_ends(x: Tensor, first: int, last: int, axis: int) -> Tensor:
    """Like x: 1 at the first and the last so many of what is not 0 along an axis, else 0."""
    counts = x != 0
    places = counts.cumsum(axis)
    ends = (places <= first) | (places > places.amax(axis, keepdim=True) - last)
    return (ends & counts).to(x.dtype)


def masked(x: Tensor, keep: Tensor) -> Tensor:
    """x where `keep` (lined up with x) is not 0, else 0."""
    return torch.where(keep != 0, x, 0.0)


def by_mode(training: bool, x: Tensor, otherwise: float) -> Tensor:
    """x while training, else a tensor like it of one number."""
    return x if training else torch.full_like(x, otherwise)


def close_pairs(x: Tensor) -> Tensor:
    """x [... a b c d] as [... a·b c·d]."""
    return x.flatten(-2).flatten(-3, -2)


def split_axis(x: Tensor, axis: int, pieces: int) -> Tensor:
    """x with one axis, counted from the end, as two: `pieces`, and the length of each."""
    pair: Tensor = x.unflatten(axis, (pieces, x.shape[axis] // pieces))
    return pair


def join_axes(x: Tensor, outer: int) -> Tensor:
    """x with the axis `outer`, counted from the end, and the one behind it as one."""
    return x.flatten(outer, outer + 1)


def svd_u(x: Tensor, count: int) -> Tensor:
    """The first `count` left singular vectors of x [... m n], as columns [... m count]."""
    found: Tensor = torch.linalg.svd(widened(x), full_matrices=False).U[..., :count]
    return found.to(x.dtype)


def svd_s(x: Tensor, count: int) -> Tensor:
    """The first `count` singular values of x [... m n], falling."""
    found: Tensor = torch.linalg.svd(widened(x), full_matrices=False).S[..., :count]
    return found.to(x.dtype)


def svd_vh(x: Tensor, count: int) -> Tensor:
    """The first `count` right singular vectors of x [... m n], as rows [... count n]; signs go with `svd_u`."""
    found: Tensor = torch.linalg.svd(widened(x), full_matrices=False).Vh[..., :count, :]
    return found.to(x.dtype)


def all_tokens(x: Tensor) -> Tensor:
    """Ones [batch seq] for a value [batch seq ...]: every token is real."""
    return torch.ones(x.shape[:2], dtype=torch.long, device=x.device)


def without_first(tokens: Tensor, count: int) -> Tensor:
    """tokens [batch seq] with 0 for the first so many."""
    return torch.cat([torch.zeros_like(tokens[:, :count]), tokens[:, count:]], 1)


def channels_last(x: Tensor, groups: int) -> Tensor:
    """x [batch channels place…] as [batch place… channels]; with groups as [batch place… groups channels]."""
    turned = x.movedim(1, -1)
    return turned.unflatten(-1, (groups, -1)) if groups else turned


def channels_second(x: Tensor, like: Tensor, grouped: bool) -> Tensor:
    """The reverse of `channels_last`, laid out in memory as `like` is: what follows may ask for that."""
    turned = (x.flatten(-2) if grouped else x).movedim(-1, 1)
    return turned.contiguous() if like.is_contiguous() else turned


def repeat_first(x: Tensor, count: int) -> Tensor:
    """x so many times over, along a new first axis."""
    return x.expand(count, *x.shape)


def one_hot_kernels(x: Tensor, kernel: tuple[int, ...], groups: int) -> Tensor:
    """A kernel for each number that a convolution with kernels of this shape reads, for each group of channels."""
    each: Tensor = torch.eye(math.prod(kernel), dtype=x.dtype, device=x.device).unflatten(-1, kernel)
    return each.repeat(groups, *(1 for _ in kernel))


def rows_of_groups(x: Tensor, ends: Tensor, rows: Tensor) -> Tensor:
    """x [groups …] for each of some rows, of which the first ends[0] are of group 0, and so on."""
    places = torch.arange(rows.shape[0], dtype=ends.dtype, device=ends.device)
    return x[torch.searchsorted(ends, places, right=True).clamp(max=x.shape[0] - 1)]


def rows_of(x: Tensor, numbers: Tensor) -> Tensor:
    """The rows of x [rows …] that have some numbers [...]."""
    return x[numbers]


def numbered_linear(x: Tensor, matrices: Tensor, numbers: Tensor) -> Tensor:
    """x [rows d_in] times matrices [groups d_in d_out], each row with the one of its number."""
    return torch.bmm(x.unsqueeze(1), matrices[numbers]).squeeze(1)


def grouped_product(x: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    """x [rows d_in] times matrices [groups d_in d_out], those rows before ends[0] with the first, and so on.

    The fast product asks for widths of 16 bytes: narrower ones are filled up with zeros.
    """
    width = 16 // x.element_size()
    more_in, more_out = -matrices.shape[1] % width, -matrices.shape[2] % width
    if more_in or more_out:
        matrices = torch.nn.functional.pad(matrices, (0, more_out, 0, more_in))
    if more_in:
        x = torch.nn.functional.pad(x, (0, more_in))
    made: Tensor = torch.nn.functional.grouped_mm(x, matrices, offs=ends)
    return made[:, : made.shape[1] - more_out] if more_out else made


def behind(x: Tensor, count: int, axis: int) -> Tensor:
    """x without the first so many along an axis."""
    return x.narrow(axis, count, x.shape[axis] - count)


def sampled(x: Tensor, count: int, axis: int) -> Tensor:
    """So many along an axis, drawn on the CPU; none again before all have been."""
    rounds = [torch.randperm(x.shape[axis]) for _ in range(-(-count // x.shape[axis]))]
    return x.index_select(axis, torch.cat(rounds)[:count].to(x.device))


def cycled(x: Tensor, count: int, axis: int, over: Tensor | None = None) -> Tensor:
    """What counts of x along the axes up to `axis`, in a row and repeated to so many: [count …]."""
    rows = x.flatten(0, axis)
    if over is not None:
        rows = rows[over.expand(x.shape[: axis + 1]).flatten() != 0]
    return rows[torch.arange(count, device=x.device) % rows.shape[0]]


def lstm(
    x: Tensor,
    step: Tensor,
    state: Tensor,
    bias: Tensor,
    axis: int,
    reverse: bool,
) -> Tensor:
    """The outputs [… out] of a long short-term memory over x [… in], which it reads along `axis`, from zeros."""
    steps = x.movedim(axis, 0)
    whole = steps.flatten(1, -2) if steps.dim() > 2 else steps.unsqueeze(1)
    whole = whole.flip(0) if reverse else whole
    if torch.compiler.is_compiling():  # which breaks its graph at torch's own
        out = lstm_steps(whole, step, state, bias)
    else:
        zeros = whole.new_zeros(1, whole.shape[1], state.shape[1])
        weights = [step, state, bias, torch.zeros_like(bias)]
        out = torch.lstm(whole, [zeros, zeros], weights, True, 1, 0.0, True, False, False)[0]
    out = out.flip(0) if reverse else out
    out = out.unflatten(1, steps.shape[1:-1]) if steps.dim() > 2 else out.squeeze(1)
    return out.movedim(0, axis)


def lstm_steps(x: Tensor, step: Tensor, state: Tensor, bias: Tensor) -> Tensor:
    """The same over x [steps batch in], written out."""
    hidden = cell = x.new_zeros(x.shape[1], state.shape[1])
    taken, outputs = torch.nn.functional.linear(x, step, bias), []
    for each in taken:
        gates = each + torch.nn.functional.linear(hidden, state)
        put, forget, new, shown = gates.chunk(4, -1)
        cell = torch.sigmoid(forget) * cell + torch.sigmoid(put) * torch.tanh(new)
        hidden = torch.sigmoid(shown) * torch.tanh(cell)
        outputs.append(hidden)
    return torch.stack(outputs)
