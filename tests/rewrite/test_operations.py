"""Every operation of the rule language as it runs in a graph, against plain torch."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from peftc.errors import RuleError
from peftc.graphs import operations
from peftc.graphs.operations import open_mask
from peftc.lang import OPERATIONS, Term, Walk, parse, read_axes
from peftc.lang.source import Place
from peftc.rewrite.backend import GraphBackend

AXES = {
    "x": "batch seq d",
    "v": "d",
    "m": "batch seq",
    "s": "seq",
    "w": "d e",
    "q": "d other",
    "u": "batch k d",
    "p": "f g",
    "r": "batch f g",
    "i": "batch n",
    "t": "batch z",
    "a": "gates d",
    "b": "gates o",
    "c": "gates",
}


def values() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = {"batch": 2, "seq": 5, "d": 4, "e": 3, "other": 4, "k": 2, "f": 3, "g": 2, "n": 3, "z": 6}
    sizes |= {"gates": 8, "o": 2}
    made = {
        name: torch.randn([sizes[axis] for axis in axes.split()], generator=generator, dtype=torch.float64)
        for name, axes in AXES.items()
    }
    return {
        **made,
        "m": torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]),
        "s": torch.tensor([0, 1, 0, 1, 1]),
        "i": torch.tensor([[2, 0, 1], [1, 1, 2]]),
    }


def run(text: str) -> tuple[Tensor, str]:
    """What an expression over the values gives, and the axes that it says it has."""
    given, graph = values(), fx.Graph()
    terms = {name: Term(read_axes(axes), graph.placeholder(name)) for name, axes in AXES.items()}
    term = Walk(GraphBackend(graph, "t", {}), terms.__getitem__, parse(text, Place("x"))).run()
    assert isinstance(term.held, fx.Node)
    graph.output(term.held)
    out = fx.GraphModule(nn.Module(), graph)(*given.values())
    assert out.dim() == len(term.axes)
    return out, " ".join(term.axes)


def rotation(q: Tensor) -> Tensor:
    skew = (q - q.T) / 2
    return torch.inverse(torch.eye(4, dtype=q.dtype) - skew) @ (torch.eye(4, dtype=q.dtype) + skew)


def filled(t: Tensor) -> Tensor:
    """[2 4 4] of t [2 6]."""
    made = torch.zeros(2, 4, 4, dtype=t.dtype)
    for place, (row, column) in enumerate(itertools.combinations(range(4), 2)):
        made[:, row, column], made[:, column, row] = t[:, place], -t[:, place]
    return made


def series(q: Tensor) -> Tensor:
    """(1 + S)(1 + S + S² + S³): the inverse of 1 − S in four terms."""
    skew, one = (q - q.T) / 2, torch.eye(4, dtype=q.dtype)
    return (one + skew) @ (one + skew + skew @ skew + skew @ skew @ skew)


def gram_schmidt(w: Tensor, **_: Tensor) -> Tensor:
    columns: list[Tensor] = []
    for column in w.T:
        rest = column - sum(((column @ other) * other for other in columns), torch.zeros_like(column))
        columns.append(rest / rest.norm())
    return torch.stack(columns, 1)


def two_largest(w: Tensor) -> Tensor:
    """The best approximation of rank 2: all but the part along the weakest direction."""
    _, directions = torch.linalg.eigh(w.T @ w)
    return w @ (torch.eye(3, dtype=w.dtype) - torch.outer(directions[:, 0], directions[:, 0]))


def softmax_of_some(x: Tensor, m: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for row, kept in enumerate(m.bool()):
        out[row, kept] = torch.softmax(x[row, kept], 0)
    return out


def recurrent(x: Tensor, a: Tensor, b: Tensor, c: Tensor, **_: Tensor) -> Tensor:
    """torch's own module over x [batch seq d]."""
    module = nn.LSTM(4, 2, batch_first=True, dtype=x.dtype)
    with torch.no_grad():
        for name, value in (("weight_ih", a), ("weight_hh", b), ("bias_ih", c), ("bias_hh", 0 * c)):
            module.get_parameter(f"{name}_l0").copy_(value)
    out: Tensor = module(x)[0].detach()
    return out


CASES: list[tuple[str, str, Callable[..., Tensor]]] = [
    ("relu(x)", "batch seq d", lambda x, **_: x.clamp(min=0)),
    ("gelu(x)", "batch seq d", lambda x, **_: x * (1 + torch.erf(x / 2**0.5)) / 2),
    ("silu(x)", "batch seq d", lambda x, **_: x * torch.sigmoid(x)),
    ("tanh(x)", "batch seq d", lambda x, **_: torch.tanh(x)),
    ("sigmoid(x)", "batch seq d", lambda x, **_: 1 / (1 + torch.exp(-x))),
    ("softplus(x)", "batch seq d", lambda x, **_: torch.log1p(torch.exp(x))),
    ("elu(x)", "batch seq d", lambda x, **_: torch.where(x > 0, x, torch.exp(x) - 1)),
    ("leaky_relu(x)", "batch seq d", lambda x, **_: torch.where(x > 0, x, x / 100)),
    (
        "at_ends(m, 1, 2, axis='seq')",
        "batch seq",
        lambda **_: torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 1, 1]]),
    ),
    ("at_ends(m, 0, 1, axis='seq')", "batch seq", lambda **_: torch.tensor([[0, 0, 1, 0, 0], [0, 0, 0, 0, 1]])),
    (
        "gelu_tanh(x)",
        "batch seq d",
        lambda x, **_: x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2,
    ),
    ("activate(x, kind='gelu_tanh')", "batch seq d", lambda x, **_: functional.gelu(x, approximate="tanh")),
    ("quick_gelu(x)", "batch seq d", lambda x, **_: x * torch.sigmoid(1.702 * x)),
    ("activate(x, kind='quick_gelu')", "batch seq d", lambda x, **_: x * torch.sigmoid(1.702 * x)),
    ("activate(x, kind='elu')", "batch seq d", lambda x, **_: functional.elu(x)),
    ("activate(x, kind='identity')", "batch seq d", lambda x, **_: x),
    ("exp(x)", "batch seq d", lambda x, **_: torch.exp(x)),
    ("log(square(x) + 1)", "batch seq d", lambda x, **_: torch.log(x**2 + 1)),
    ("sqrt(abs(x))", "batch seq d", lambda x, **_: x.abs() ** 0.5),
    ("stop_gradient(x)", "batch seq d", lambda x, **_: x),
    ("clamp(x, min=-0.5, max=0.25)", "batch seq d", lambda x, **_: x.clamp(-0.5, 0.25)),
    ("softmax(x, axis='seq')", "batch seq d", lambda x, **_: torch.softmax(x, 1)),
    ("mean(x, axis='seq')", "batch d", lambda x, **_: x.mean(1)),
    ("sum(x, axis='batch')", "seq d", lambda x, **_: x.sum(0)),
    ("mean(x, axis='seq', over=m)", "batch d", lambda x, **_: torch.stack([x[0, :3].mean(0), x[1].mean(0)])),
    ("sum(x, axis='seq', over=m)", "batch d", lambda x, **_: torch.stack([x[0, :3].sum(0), x[1].sum(0)])),
    ("mean(x, axis='seq', over=s)", "batch d", lambda x, **_: x[:, [1, 3, 4]].mean(1)),
    ("repeat(w, x, axis='batch')", "batch d e", lambda w, **_: torch.stack([w, w])),
    ("repeat(x, u, axis='batch')", "batch seq d", lambda x, **_: x),
    ("mean(x @ v, axis='seq', over=m)", "batch", lambda x, v, **_: torch.stack([(x @ v)[0, :3].mean(), (x @ v)[1].mean()])),
    ("max(x, axis='d')", "batch seq", lambda x, **_: x.max(-1).values),
    ("length(w, axis='d')", "e", lambda w, **_: w.pow(2).sum(0).sqrt()),
    ("layer_norm(x, axis='d')", "batch seq d", lambda x, **_: functional.layer_norm(x, [4])),
    ("rms_norm(x, axis='d')", "batch seq d", lambda x, **_: x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()),
    ("cayley(q)", "d other", lambda q, **_: rotation(q)),
    ("cayley(q, terms=5)", "d other", lambda q, **_: series(q)),
    ("cayley(q, terms=1)", "d other", lambda q, **_: torch.eye(4, dtype=q.dtype)),
    ("skew(t, 4, rows='i', columns='j')", "batch i j", lambda t, **_: filled(t)),
    ("dot(x, w, axis='d')", "batch seq e", lambda x, w, **_: x @ w),
    ("dot(w, q, axis='d')", "e other", lambda w, q, **_: w.T @ q),
    ("dot(u, x, axis='batch')", "k d seq", lambda u, x, **_: torch.einsum("bkd,bsd->kds", u, x)),
    ("x * pairs(4) + sqrt(9) - square(abs(-2)) / exp(log(2))", "batch seq d", lambda x, **_: x * 6 + 3 - 2),
    ("x / divisor(24, 10) + x / divisor(24, 3)", "batch seq d", lambda x, **_: x / 4 + x / 3),
    ("rename(x @ cayley(q), axis='other', to='d')", "batch seq d", lambda x, q, **_: x @ rotation(q)),
    ("u @ rename(u, axis='k', to='l')", "batch k l", lambda u, **_: u @ u.mT),
    ("kron(w, p, rows='m', columns='n')", "m n", lambda w, p, **_: torch.kron(w, p)),
    ("kron(u, r, rows='m', columns='n')", "batch m n",
     lambda u, r, **_: torch.stack([torch.kron(a, b) for a, b in zip(u, r, strict=True)])),
    ("split(x, 2, axis='d', outer='o', inner='i')", "batch seq o i",
     lambda x, **_: torch.stack([x[..., :2], x[..., 2:]], -2)),
    ("join(u, outer='k', inner='d', to='f')", "batch f", lambda u, **_: torch.cat([u[:, 0], u[:, 1]], -1)),
    ("join(split(x, 2, axis='d', outer='o', inner='i'), outer='o', inner='i', to='d')", "batch seq d", lambda x, **_: x),
    ("first(x, 2, axis='seq')", "batch seq d", lambda x, **_: x[:, :2]),
    ("rows(w, i, axis='e')", "batch n d", lambda w, i, **_: functional.embedding(i, w.T)),
    ("rows(p, i, axis='f') @ p", "batch n f", lambda p, i, **_: functional.embedding(i, p) @ p.T),
    ("sum(sampled(w, 6, axis='e'), axis='e')", "d", lambda w, **_: 2 * w.sum(1)),
    ("cycled(x, 9, axis='seq', over=m)", "seq d", lambda x, **_: torch.cat([x[0, :3], x[1], x[0, :1]])),
    ("cycled(x, 12, axis='seq')", "seq d", lambda x, **_: torch.cat([x[0], x[1], x[0, :2]])),
    ("lstm(x, a, b, c, axis='seq')", "batch seq o", recurrent),
    ("lstm(x, a, b, c, axis='seq', reverse=True)", "batch seq o",
     lambda x, a, b, c, **_: recurrent(x.flip(1), a, b, c).flip(1)),
    ("gram(w, axis='e', to='f')", "e f", lambda w, **_: w.T @ w),
    ("gram(x, axis='d', to='f')", "d f", lambda x, **_: x.flatten(0, 1).T @ x.flatten(0, 1)),
    ("q + identity_like(q)", "d other", lambda q, **_: q + torch.eye(4, dtype=q.dtype)),
    ("orthogonal(w)", "d e", gram_schmidt),
    ("masked(x / (1 - m), 1 - m)", "batch seq d", lambda x, m, **_: torch.where(m[..., None] == 0, x, 0.0)),
    ("softmax(x, axis='seq', over=m)", "batch seq d", lambda x, m, **_: softmax_of_some(x, m)),
    ("sum(x, axis='seq', over=counted(m, which='tokens'))", "batch d", lambda x, m, **_: (x * m[..., None]).sum(1)),
    ("sum(x, axis='seq', over=counted(m, which='all'))", "batch d", lambda x, **_: x.sum(1)),
    ("while_training(x)", "batch seq d", lambda x, **_: x),
    ("(svd_u(w, 2) * svd_s(w, 2)) @ svd_vh(w, 2)", "d e", lambda w, **_: two_largest(w)),
    ("dropout(x, p=0)", "batch seq d", lambda x, **_: x),
    ("concat(v * v, w, axis='d')", "", lambda **_: torch.zeros(())),
    ("see_prefix(x, 2, axis='d')", "batch seq d", lambda x, **_: torch.cat([*[x.amax(-1, keepdim=True)] * 2, x], -1)),
    ("clamp(x, min=0)", "batch seq d", lambda x, **_: x.clamp(min=0)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "axes", "want"), [c for c in CASES if c[1]], ids=[c[0] for c in CASES if c[1]]
)
def test_it_is_what_torch_makes_of_it(text: str, axes: str, want: Callable[..., Tensor]) -> None:
    got, said = run(text)
    assert said == axes
    torch.testing.assert_close(got, want(**values()), atol=1e-12, rtol=1e-10)


def test_every_operation_is_here() -> None:
    used = " ".join(text for text, _, _ in CASES)
    assert not [name for name in OPERATIONS if f"{name}(" not in used]


def test_a_recurrence_is_the_same_written_out() -> None:
    given = values()
    step, state, bias = (given[name] for name in "abc")
    out = operations.lstm_steps(given["x"].transpose(0, 1), step, state, bias).transpose(0, 1)
    torch.testing.assert_close(out, recurrent(given["x"], step, state, bias), atol=1e-12, rtol=1e-10)


def test_no_gradient_goes_through_a_stop() -> None:
    x = torch.randn(3, requires_grad=True)
    graph = fx.Graph()
    term = Term(("d",), graph.placeholder("x"))
    walk = Walk(GraphBackend(graph, "t", {}), lambda _: term, parse("x * stop_gradient(x)", Place("x")))
    held = walk.run().held
    assert isinstance(held, fx.Node)
    graph.output(held)
    fx.GraphModule(nn.Module(), graph)(x).sum().backward()
    assert torch.equal(x.grad, x.detach())  # type: ignore[arg-type]


def test_a_rotation_is_orthogonal_and_starts_at_one() -> None:
    turned, _ = run("cayley(q)")
    torch.testing.assert_close(turned @ turned.T, torch.eye(4, dtype=turned.dtype))
    still, _ = run("cayley(q - q)")
    assert torch.equal(still, torch.eye(4, dtype=still.dtype))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mean(x, axis='seq', over=v)", "[d] has no axis 'seq'"),
        ("mean(w, axis='d', over=x)", "[d e] has no batch, seq, over which it is taken"),
        ("mean(x, axis='seq', over=3)", "mean takes a value as over"),
        ("mean(x, axis='seq', ovr=m)", "did you mean 'over'?"),
        ("rename(x, axis='seq', to='d')", "'d' is there already"),
        ("rename(x, axis='seq', to='D')", "'D' is no name of an axis"),
        ("rename(x, axis='e', to='f')", "[batch seq d] has no axis 'e'"),
        ("cayley(v)", "[d] has no two last axes with names"),
        ("length(x)", "length needs its setting 'axis'"),
        ("kron(w, q, rows='m', columns='n')", "must each have two axes that the other lacks"),
        ("kron(w, p, rows='m', columns='m')", "[]: 'm' is no name of an axis"),
        ("split(x, 2, axis='d', outer='seq', inner='i')", "'seq' is there already"),
        ("split(x, 1.5, axis='d', outer='o', inner='i')", "1.5 is no whole number above 0"),
        ("join(x, outer='d', inner='seq', to='f')", "'seq' does not stand right behind 'd'"),
        ("masked(w, x)", "[d e] has no batch, seq"),
        ("rows(w, i, axis='g')", "[d e] has no axis 'g'"),
        ("rows(w, x, axis='e')", "[d e] and the ids [batch seq d] both have d"),
        ("rows(2, i, axis='e')", "rows takes a value as x, not a constant"),
        ("lstm(x, w, b, c, axis='seq')", "must be [gates in], [gates out] and [gates]"),
        ("lstm(t, a, b, c, axis='z')", "[batch z] does not end in 'd'"),
        ("cycled(x, 3, axis='e')", "[batch seq d] has no axis 'e'"),
        ("cycled(w, 3, axis='e', over=m)", "[batch seq] has no axis 'e'"),
        ("sampled(w, 0, axis='e')", "0 is no whole number above 0"),
        ("orthogonal(v)", "[d] has no two last axes with names"),
        ("gram(x, axis='d', to='seq')", "'seq' is there already"),
        ("dot(x, p, axis='d')", "[f g] has no axis 'd'"),
        ("dot(w, x, axis='seq')", "[d e] has no axis 'seq'"),
        ("skew(t, 4, rows='batch', columns='j')", "'batch' is there already"),
        ("skew(t, v, rows='i', columns='j')", "skew takes a number as size, not [d]"),
        ("x * sqrt(-1)", "cannot be computed"),
        ("x * exp(1000)", "cannot be computed"),
        ("x * sqrt('d')", "sqrt takes a value or a number as x, not a text"),
        ("x * pairs(x)", "pairs takes a number as count, not [batch seq d]"),
        ("x * divisor(9)", "divisor takes 2 values without a name, not 1"),
    ],
)
def test_what_does_not_fit_is_refused(text: str, said: str) -> None:
    with pytest.raises(RuleError) as caught:
        run(text)
    assert said in str(caught.value)


@pytest.mark.parametrize("window", [0, 3])
def test_a_mask_that_is_added_is_opened_as_one_of_truth_values_is(window: int) -> None:
    seen = torch.rand(2, 1, 4, 5, generator=torch.Generator().manual_seed(0)) > 0.3
    seen |= torch.eye(4, 5, dtype=torch.bool).roll(1, -1)  # each query sees the key at its own place
    added = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    opened = open_mask(seen, 2, window)
    assert torch.equal(open_mask(added, 2, window) == 0, opened)
    # The queries stand at the last four of five keys, 1 to 4, the new keys at -2 and -1.
    want = [[not window or place - before < window for before in (-2, -1)] for place in range(1, 5)]
    assert opened[1, 0, :, :2].tolist() == want
