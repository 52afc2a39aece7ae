"""What a function is written down as: its calls, and no number that is another at the next call."""

import gc
import weakref

import numpy as np
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


def as_numpys(x):
    return torch.from_numpy(np.exp(np.asarray(x)))


def in_a_list(x):
    return x * x.sum(0).tolist()[0]


def made_of_a_list(x):
    return x * torch.tensor([x.sum(), 2.0, 1.0])


def of_how_many(x):
    return x[x > 0].sum() / len(x[x > 0])


def of_which(x):
    return x * len((x > 0).nonzero())


def where_the_error_is_caught(x):
    try:
        return x * float(x.sum())
    except RuntimeError:
        return x


@pytest.mark.parametrize(
    "fn",
    [
        of_an_argument, by_a_condition, of_what_is_closed_over, of_a_number_that_was_written_into,
        of_a_draw, as_numpys, in_a_list, made_of_a_list, of_how_many, of_which,
        where_the_error_is_caught,
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
        first = x[:, torch.tensor([True, False, False])]  # of a shape that is always the same
        return x * half.item() + 0 * first if half > 0.3 else x

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


def test_a_call_that_failed_is_not_written_down():
    def fn(x):
        y = x.clone()
        try:
            y.add_(torch.ones(7))
        except RuntimeError:
            y.mul_(2.0)
        return y

    assert torch.equal(recorded(fn, X)(X + 1), 2 * (X + 1))


def test_what_is_closed_over_is_written_into_once_a_call():
    """Such a function runs live: it would write once more while it is written down."""
    b = backends.load("torch", "cpu", compile="graph")
    total = torch.zeros(3)
    f = b.compile(lambda x: total[:].add_(x.sum(0)) * 1)
    for count in (1.0, 2.0):
        assert torch.equal(f(X), count * X.sum(0))
    assert "closes over" in f.reason


@pytest.mark.parametrize("family", ["Binomial", "Cauchy", "Geometric", "Beta"])
def test_one_key_gives_one_draw_of_what_draws_inside(family):
    import probgen as pg
    from probgen.engine.bind import bind

    b = backends.load("torch", "cpu", compile="graph")
    args = {"Binomial": (100, 0.3), "Cauchy": (0.0, 1.0), "Geometric": (0.1,), "Beta": (2.0, 1.0)}

    @pg.model
    def program():
        with pg.plate("many", 50):
            pg.sample("x", getattr(pg.dist, family)(*args[family]))

    bound, params = bind(program, b, data={})
    draw = b.compile(lambda k: bound.trace(params, {}, key=k)["x"].value, num_calls=100)
    draws = [draw(b.key(seed)) for seed in (1, 1, 2)]
    assert draw.route == "graph"
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_a_function_that_draws_nothing_takes_row_keys():
    """`lgamma` is no draw, for all that its name says gamma."""
    b = backends.load("torch", "cpu", compile="graph")
    f = b.compile(lambda x, key: torch.lgamma(x + 1) + b.normal(key, x.shape), num_calls=100)
    keys = b.row_keys(b.key(0), np.arange(2))
    torch.testing.assert_close(f(X, keys), torch.lgamma(X + 1) + b.normal(keys, X.shape))
    assert f.route == "graph"


def test_noise_that_is_written_into_is_drawn_again():
    b = backends.load("torch", "cpu", compile="graph")

    def fn(key):
        first, second = b.normal(key, (3,)), b.normal(key, (3,))
        return first.mul_(2.0) + second

    want = 3 * b.normal(b.key(1), (3,))
    torch.testing.assert_close(b.compile(fn, num_calls=100)(b.key(1)), want)


def test_a_graph_is_of_the_precision_that_is_asked_for():
    b = backends.load("torch", "cpu", compile="graph")
    f = b.compile(lambda x: x @ x.T, num_calls=100)
    with torch.autocast("cpu", torch.bfloat16):
        assert f(X).dtype == torch.bfloat16
    assert f(X).dtype == torch.float32


def test_what_is_closed_over_goes_with_the_function():
    """At once, also where tracing was refused: nothing waits for the garbage collector."""
    b = backends.load("torch", "cpu", compile="graph")

    def kept(fn):
        table = torch.ones(3)
        b.compile(lambda x: fn(x, table))(X)
        return weakref.ref(table)

    kept(torch.mul)  # torch's own imports keep frames of a first trace
    gc.collect()
    gc.disable()
    try:
        gone = [kept(torch.mul), kept(lambda x, table: x * float(table.sum()))]
        assert [ref() for ref in gone] == [None, None]
    finally:
        gc.enable()
