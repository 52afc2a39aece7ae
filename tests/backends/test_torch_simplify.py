"""A cleaned graph gives what the traced one gives, to the bit, and shares nothing it should not."""

import copy

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("pyro")

import torch.nn.functional as F  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from probgen import backends  # noqa: E402
from probgen.backends.torch.aliases import op_of  # noqa: E402
from probgen.backends.torch.direct import SAME_AS, directly  # noqa: E402
from probgen.backends.torch.record import Recorder  # noqa: E402
from probgen.backends.torch.simplify import fold, simplify  # noqa: E402

X = torch.arange(1.0, 7.0).reshape(2, 3)


def neutral(x):
    return ((x + 0) * 1 - 0) / 1, (x**1.0).expand(2, 3).view(2, 3)


def constants(x):
    two = torch.tensor(2.0)
    scale = torch.ones_like(x) * two.log()
    return x * scale + torch.tensor([1.0, 2.0, 3.0]).exp()


def written_in_place(x):
    """What Pyro's densities do; the zero that is added first must not go, it makes the copy."""
    y = x + 0
    y.masked_fill_(x > 3, -1.0)
    return y + x


def written_constant(x):
    total = torch.zeros(3)
    total.add_(x.sum(0))
    total.add_(1.0)
    return total * 2


def written_through_a_view(x):
    y = torch.zeros(2, 3)
    y[0].add_(x[1])
    return y, y.sum()


def written_through_a_piece(x):
    """Of what is zero at first, and of what was copied before."""
    total, y = torch.zeros_like(x), x.clone()
    kept = y + 0
    total.unbind(0)[0].add_(x[0])
    y.split(1)[1].mul_(3.0)
    return total * 2, kept * 2, y


def written_in_a_list(x):
    y = x.clone()
    kept = y + 0
    torch._foreach_add_([y], [x])
    return kept * 2, y


def written_by_name(x):
    y = torch.empty(2, 3)
    row = y.view(-1)
    torch.add(x, 1, out=y)
    kept = y + 0
    row.zero_()
    return kept * 2, y


def draws(x):
    return x + torch.rand(2, 3)


def gradient(x):
    leaf = x.detach().requires_grad_(True)
    with torch.enable_grad():
        value = torch.distributions.Normal(1.0, 2.0, validate_args=False).log_prob(leaf).sum()
    return value.detach(), torch.autograd.grad(value, leaf)[0]


FUNCTIONS = [
    neutral, constants, written_in_place, written_constant, written_through_a_view,
    written_through_a_piece, written_in_a_list, written_by_name, draws, gradient,
]  # fmt: skip


def cleaned(fn):
    """The module of a function, written down as it runs on X, and its calls that are left."""
    recorder = Recorder()
    x = recorder.input(X.clone())
    with torch.no_grad(), recorder:
        out = fn(x)
    graph = recorder.finish(list(out) if isinstance(out, tuple) else [out])
    simplify(recorder.root, graph)
    fold(recorder.root, graph)
    directly(graph)
    calls = [node for node in graph.nodes if node.op in ("call_function", "call_method")]
    return torch.fx.GraphModule(recorder.root, graph), calls


def outputs(fn, x):
    torch.manual_seed(0)
    out = fn(x)
    return list(out) if isinstance(out, tuple | list) else [out]


@pytest.mark.parametrize("fn", FUNCTIONS, ids=lambda fn: fn.__name__)
def test_a_cleaned_graph_gives_the_same_bits_every_time(fn):
    module, _ = cleaned(fn)
    with torch.no_grad():
        for x in (X, X, 1 - X):
            given = x.clone()
            for got, want in zip(outputs(module, given), outputs(fn, x.clone()), strict=True):
                assert torch.equal(got, want)
            assert torch.equal(given, x)  # an argument is not written into


@pytest.mark.parametrize(("fn", "left"), [(neutral, 1), (constants, 2)])
def test_what_changes_nothing_is_gone(fn, left):
    """neutral: its first output must stay a tensor of its own; constants: a product and a sum."""
    module, calls = cleaned(fn)
    assert len(calls) == left, module.code


def test_an_output_is_the_callers_own():
    """A constant that a graph returns may be overwritten, and the next call gives it anew."""
    b = backends.load("torch", "cpu", compile="graph")
    f = b.compile(lambda x: {"zero": torch.zeros_like(x), "row": torch.ones(2, 3)[0], "x": x + 0})
    x = X.clone()
    first = f(x)
    for value in first.values():
        value.add_(5.0)
    assert torch.equal(x, X)
    again = f(x)
    assert torch.equal(again["zero"], torch.zeros(2, 3))
    assert torch.equal(again["row"], torch.ones(3))


def test_a_closed_over_tensor_is_not_frozen():
    b = backends.load("torch", "cpu", compile="graph")
    outside = torch.ones(3)
    f = b.compile(lambda x: x + outside.exp())
    f(X)
    outside.mul_(2.0)
    assert torch.equal(f(X), X + outside.exp())


def test_a_compiled_function_takes_arrays_of_any_strides():
    """Compiled code reads memory by fixed strides; a transposed array has other ones."""
    b = backends.load("torch", "cpu", compile="inductor")
    f = b.compile(lambda x: x @ x.T + 2.0)
    square = torch.arange(9.0).reshape(3, 3)
    for x in (square, square.T, square[:1].expand(3, 3)):
        torch.testing.assert_close(f(x), x @ x.T + 2.0)
    assert [graph.route for graph in f.graphs.values()] == ["inductor"]


class Listener(TorchDispatchMode):
    """The operators that are asked for, in their order."""

    def __init__(self):
        super().__init__()
        self.heard = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.heard.append(op)
        return op(*args, **(kwargs or {}))


def step(w, x, y):
    """A convolution, two dense layers, a softmax: loss and gradient as a step has them."""
    w = {k: v.detach().requires_grad_() for k, v in w.items()}
    h = F.silu(torch.conv2d(x, w["kernel"], padding=1)).mean((2, 3))
    h = F.layer_norm(F.softplus(h @ w["dense"]), (4,))
    h = torch.where(h > 0.1, h, 2.0 * h) - 0.5 * h[:, :1] ** 2
    loss = F.cross_entropy(h @ w["last"], y) + torch.special.erf(h).clamp(-0.5, 0.5).sum()
    return [loss.detach(), *torch.autograd.grad(loss, list(w.values()))]


def test_torchs_own_functions_call_the_kernels_that_were_written_down():
    """Every one of them asks for the operator in whose place it stands, and gives its bits."""
    torch.manual_seed(0)
    shapes = {"kernel": (5, 2, 3, 3), "dense": (5, 4), "last": (4, 3)}
    w = {k: torch.randn(s) for k, s in shapes.items()}
    x, y = torch.randn(6, 2, 4, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    recorder = Recorder()
    copies = [recorder.input(v.clone()) for v in (*w.values(), x, y)]
    with torch.no_grad(), recorder, torch.enable_grad():
        out = step(dict(zip(w, copies[:3], strict=True)), *copies[3:])
    graph = recorder.finish(out)
    simplify(recorder.root, graph)
    before = torch.fx.GraphModule(recorder.root, copy.deepcopy(graph))
    directly(graph)
    after = torch.fx.GraphModule(recorder.root, graph)
    same, heard = {}, {}
    for name, module in (("before", before), ("after", after)):
        with torch.no_grad(), Listener() as listener:
            same[name] = module(*w.values(), x, y)
        heard[name] = [SAME_AS.get(op, op) for op in listener.heard]
    assert heard["before"] == heard["after"]
    assert all(map(torch.equal, same["before"], same["after"]))
    left = [n for n in graph.nodes if op_of(n) is not None]
    done = [n for n in graph.nodes if n.op.startswith("call_")]
    assert len(left) < 0.25 * len(done), [str(n.target) for n in left]


def test_a_function_that_asks_for_another_operator_is_not_taken():
    """`torch.norm` is computed by another kernel than `aten.norm`, and may round otherwise."""
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    size = graph.call_function(torch.ops.aten.norm.Scalar, (x, 2))
    graph.output(graph.call_function(torch.ops.aten.mul.Tensor, (x, size)))
    directly(graph)
    assert [n.target for n in graph.nodes][1:3] == [torch.ops.aten.norm.Scalar, torch.mul]


@pytest.mark.parametrize("taken", ["index_select", "getitem"])
def test_gradients_by_index_are_each_chains_own(taken):
    """Mapped over chains, a gradient adds into zeros that are stretched over them, which inductor
    takes for one memory."""
    index = torch.tensor([1, 1, 2])

    def density(theta):
        picked = theta.index_select(0, index) if taken == "index_select" else theta[index]
        return torch.sum(picked**2)

    b = backends.load("torch", "cpu", compile="inductor")
    run = b.compile(lambda thetas: b.each(lambda t: b.value_and_grad(density)(t)[1])(thetas))
    thetas = torch.arange(12.0).reshape(3, 4)
    wanted = 2 * thetas * torch.tensor([0.0, 2.0, 1.0, 0.0])
    torch.testing.assert_close(run(thetas), wanted)
    assert b.info()["routes"] == ["inductor"]
