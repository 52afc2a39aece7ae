"""What a function is written down as: its calls, and no number that is another at the next call."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("pyro")

from probgen import backends  # noqa: E402
from probgen.backends.torch.record import Recorder  # noqa: E402
from probgen.backends.torch.routes import NotTraced  # noqa: E402

X = torch.arange(1.0, 7.0).reshape(2, 3)
OUTSIDE = torch.tensor(3.0)


def recorded(fn, *args):
    recorder = Recorder()
    given = [recorder.input(a.clone()) for a in args]
    with torch.no_grad(), recorder:
        out = fn(*given)
    graph = recorder.finish([out])
    module = torch.fx.GraphModule(recorder.root, graph)
    return lambda *xs: module(*xs)[0]


def of_an_argument(x):
    return x * float(x.sum())


def by_a_condition(x):
    return x if x.sum() > 3 else -x


def of_what_is_closed_over(x):
    return x * OUTSIDE.item()


def of_a_number_that_was_written_into(x):
    total = torch.tensor(0.0)
    seen = total.view(1)
    total.add_(x.sum())
    return x * seen.item()


def of_a_draw(x):
    return x * torch.rand(()).item()


@pytest.mark.parametrize(
    "fn",
    [
        of_an_argument, by_a_condition, of_what_is_closed_over, of_a_number_that_was_written_into,
        of_a_draw,
    ],
    ids=lambda fn: fn.__name__,
)  # fmt: skip
def test_a_value_that_may_be_another_next_time_is_not_written_down(fn):
    with pytest.raises(NotTraced, match="value of a tensor"):
        recorded(fn, X)


def test_so_such_a_function_runs_as_it_is():
    b = backends.load("torch", "cpu", compile="graph")
    f = b.compile(by_a_condition)
    for x in (X, -X):
        assert torch.equal(f(x), by_a_condition(x))
    assert f.route == "live" and "value of a tensor" in f.reason


def test_a_number_of_the_text_may_be_asked():
    def fn(x):
        half = torch.tensor([0.25, 0.5]).max()
        return x * half.item() if half > 0.3 else x

    assert torch.equal(recorded(fn, X)(X + 1), (X + 1) * 0.5)


@pytest.mark.parametrize("transform", ["grad", "vmap", "hvp"])
def test_what_transforms_do_is_written_down(transform):
    """The graph has the derivative's own calls: it gives other arguments' derivatives."""

    def energy(x):
        return (x.sin() * x).sum()

    fns = {
        "grad": torch.func.grad(energy),
        "vmap": torch.vmap(lambda row: row.softmax(0) * row.sum()),
        "hvp": lambda x: torch.func.jvp(torch.func.grad(energy), (x,), (x,))[1],
    }
    module = recorded(fns[transform], X)
    for x in (X, X.flip(0) - 2.5):
        torch.testing.assert_close(module(x), fns[transform](x))


def test_a_tape_is_written_down_with_what_it_saves():
    def fn(x):
        leaf = x.detach().requires_grad_(True)
        with torch.enable_grad():
            out = leaf.exp().sigmoid().cumsum(0).prod()  # each saves its own output
        return torch.autograd.grad(out, leaf)[0]

    module = recorded(fn, X)
    for x in (X, X / 3 - 1):
        torch.testing.assert_close(module(x), fn(x))


def test_pieces_and_writes_come_out_where_they_were_put():
    def fn(x):
        first, second = x.split(1)
        y = torch.zeros(2, 3)
        y[1].add_(first[0])
        values, where = torch.sort(second[0], descending=True)
        return y + values + where

    module = recorded(fn, X)
    for x in (X, X.flip(1)):
        assert torch.equal(module(x), fn(x))
