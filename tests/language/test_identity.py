"""What a declaration is by its content: equal where equal, different where a number may differ."""

import dataclasses
import functools
import os
import subprocess
import sys
import textwrap
import threading
import types
from pathlib import Path

import numpy as np
import pytest
from identity_cases import EDITS, SAME, USERS, X, edited, module, vae

from probgen import dist, nets
from probgen.engine.evaluation_context import CacheKey
from probgen.errors import DeclarationError
from probgen.inference import IWAE
from probgen.inference.likelihood.partition import LogPartition
from probgen.inference.ood import WAIC, LikelihoodRatio, Mahalanobis, Resultant
from probgen.language.identity import identity
from probgen.models import likelihoods

# ---- functions and classes of a user


@pytest.mark.parametrize("what", EDITS)
def test_a_program_is_what_it_does(what):
    assert (identity(edited(what)) == identity(module().model)) == (what in SAME)


def test_a_call_leaves_a_program_as_it_is():
    """Bytecode is specialised as it runs, and what is remembered is no part of an object."""
    made, before = module(), identity(module().scale_of)
    for _ in range(100):
        made.scale_of(0)
    assert identity(made.scale_of) == before

    class Remembers:
        @functools.cached_property
        def big(self):
            return object()

    one = Remembers()
    before = identity(one)
    assert one.big and identity(one) == before


def test_a_module_of_the_user_counts_by_what_is_used_of_it():
    def helper(body):
        made = types.ModuleType("users_helper")
        exec(f"def used(x): return {body[0]}\ndef unused(x): return {body[1]}", made.__dict__)
        scope = {"helper": made, "np": np, "__name__": "users_program"}
        exec("def f(x): return helper.used(np.exp(x))", scope)
        return identity(scope["f"])

    assert helper("xx") == helper("xx") == helper(("x", "2 * x")) != helper(("2 * x", "x"))


def test_a_module_that_a_function_imports_itself_counts_too(monkeypatch):
    made = types.ModuleType("users_settings")
    monkeypatch.setitem(sys.modules, "users_settings", made)

    def of(text, **values):
        vars(made).update(values)
        scope = {"__name__": "users.program", "__package__": "users"}
        exec(text, scope)
        return identity(scope["f"])

    for text in (
        "def f(x):\n import users_settings as s\n return x * s.scale",
        "def f(x):\n from users_settings import scale\n return x * scale",
    ):
        one, again, other = (of(text, scale=n, unused=u) for n, u in ((1, 1), (1, 2), (2, 2)))
        assert one == again != other
    sibling = types.ModuleType("users.settings")
    monkeypatch.setitem(sys.modules, "users.settings", sibling)
    marks = []
    for sibling.scale in (1, 1, 2):
        marks.append(of("def f(x):\n from .settings import scale\n return x * scale"))
    assert marks[0] == marks[1] != marks[2]


def test_functions_that_call_each_other():
    def pair(step):
        scope = {"__name__": "users_program"}
        text = (
            f"def even(n): return n == 0 or odd(n - {step})\ndef odd(n): return n and even(n - 1)"
        )
        exec(text, scope)
        return identity([scope["even"], scope["odd"]])

    assert pair(1) == pair(1) != pair(3)


def test_inner_functions_sets_and_partial_calls():
    def closing(scale, words):
        return functools.partial(lambda x, k: [scale * v for v in x if v not in words], k=scale)

    assert identity(closing(1, {"a", "b"})) == identity(closing(1, {"b", "a"}))
    assert len({identity(closing(*c)) for c in [(1, {"a"}), (2, {"a"}), (1, {"b"})]}) == 3


# ---- arrays, containers, declarations


def test_values_of_another_type_shape_or_order_differ():
    values = [
        None, 0, False, 0.0, -0.0, "0", b"0", (), [], {}, set(), (0,), [0], ((0,),), {"a": 0},
        {"a": 0, "b": 1}, {"b": 1, "a": 0}, np.zeros(2), np.zeros(2, np.float32), np.zeros((2, 1)),
        np.zeros((1, 2)), np.float64(0), np.array(["a", 1], object), np.array(["a", 2], object),
        np.ma.masked_array([1, 2], [0, 1]), np.ma.masked_array([1, 2], [1, 0]), slice(0, 2),
        np.random.default_rng(0), np.random.default_rng(1), np.exp, np.log, np, float, len,
        dist.Normal(0, 1), dist.Normal(0, 2), dist.Normal, nets.MLP(), nets.MLP((3,)),
        IWAE(5), IWAE(6),
    ]  # fmt: skip
    assert len({identity(v) for v in values}) == len(values)


def test_equal_values_are_one(tmp_path):
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert identity(X) == identity(X.copy()) == identity(np.asfortranarray(X)) == identity(mapped)
    assert identity(X[::2]) == identity(X[::2].copy())
    assert identity({"a": [X]}) == identity({"a": [X.copy()]})


def test_an_object_of_the_user_is_its_state_or_what_it_says():
    @dataclasses.dataclass
    class Open:
        x: int = 0

    one, other = Open(), Open()
    assert identity(one) == identity(other)
    other.more = 1
    assert identity(one) != identity(other)

    class Stated:
        def __init__(self, told, hidden):
            self.told, self.hidden = told, hidden

        def __identity__(self):
            return self.told

    class Fresh(Stated):
        def __identity__(self):
            return [self.told]

    # Parts that are made for the walk alone stay, so that no other comes to stand at their address.
    fresh = [Fresh(i, None) for i in range(20)]
    assert identity(fresh) != identity([*fresh[:19], Fresh(0, None)])
    assert identity(Stated(1, 2)) == identity(Stated(1, threading.Lock())) != identity(Stated(2, 2))


def test_what_cannot_be_told_is_refused_with_the_way_there():
    lock = threading.Lock()

    def guarded(x):
        with lock:
            return x

    with pytest.raises(DeclarationError, match=r"model > 0 > lock: got a .*lock.*__identity__"):
        identity([guarded], "model")
    deep = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(DeclarationError, match="data: got a list nested too deeply"):
        identity(deep, "data")


# ---- fitted models, scores, measures


def test_a_fitted_model_is_its_declaration_parameters_and_inputs():
    one = vae()
    told = dataclasses.replace(one, info={"seed": 1}, report="said")
    assert identity(one) == identity(vae()) == identity(told)
    others = [
        vae(2.0), vae(likelihood=likelihoods.Normal(scale=0.6)),
        *(dataclasses.replace(one, constants={"shift": v}) for v in (1.0, 2.0, X, X + 1)),
    ]  # fmt: skip
    assert len({identity(f) for f in [one, *others]}) == 7


@pytest.mark.parametrize("make", [LikelihoodRatio, lambda f: WAIC([f, f])], ids=["ratio", "waic"])
def test_a_score_knows_its_models_by_the_values_of_their_inputs(make):
    backgrounds = [dataclasses.replace(vae(), constants={"shift": v}) for v in (1.0, 2.0)]
    marks = {identity(make(f)) for f in backgrounds}
    assert len(marks) == 2 and len({repr(make(f)) for f in backgrounds}) == 2
    assert identity(make(dataclasses.replace(vae(), constants={"shift": 1.0}))) in marks


def test_a_fitted_density_is_its_fit():
    from sklearn.mixture import GaussianMixture

    def score(x):
        return Resultant(X, density=GaussianMixture(1, random_state=0).fit(x))

    one, again, other = score(X), score(X.copy()), score(X + 1)
    assert repr(one) == repr(other)  # what scikit-learn has to say
    assert identity(one) == identity(again) != identity(other)
    assert one.name == again.name != other.name and "/" not in one.name


def test_reference_data_and_log_z_are_known_in_full():
    assert (
        identity(Mahalanobis(X)) == identity(Mahalanobis(X.copy())) != identity(Mahalanobis(X + 1))
    )
    said = {"standard_error": 0.1, "method": None, "start": "base", "num_weights": 4}
    one, other = (LogPartition(estimate=v, lower_bound=0, **said) for v in (1.00001, 1.00004))
    assert repr(one.estimate)[:5] == repr(other.estimate)[:5] and identity(one) != identity(other)


def test_one_computation_serves_equal_measures_and_no_others():
    @dataclasses.dataclass(frozen=True)
    class Holds:
        x: np.ndarray

    assert CacheKey(IWAE(5), X) == CacheKey(IWAE(5), X) != CacheKey(IWAE(6), X)
    assert CacheKey(IWAE(5), X) != CacheKey(IWAE(5), X.copy())  # arrays by object

    class Clash:
        def __hash__(self):
            return 1

        def __eq__(self, other):
            return False

        def __repr__(self):
            return "Clash()"

    assert CacheKey(Clash()) != CacheKey(Clash())
    held = Holds(X)
    assert CacheKey(held) == CacheKey(held) != CacheKey(Holds(X))
    assert len({CacheKey(Holds(X)) for _ in range(50)}) == 50  # none is freed for the next


# ---- networks of other libraries


def test_a_network_of_torch_is_its_settings_and_buffers():
    torch = pytest.importorskip("torch")

    def net(slope=0.1, running=0.0, seed=0, width=4):
        torch.manual_seed(seed)
        norm, act = torch.nn.BatchNorm1d(width), torch.nn.LeakyReLU(slope)
        norm.running_mean += running
        return torch.nn.Sequential(torch.nn.Linear(3, width), norm, act).eval()

    one = identity(nets.from_torch(net(), 1))
    assert one == identity(nets.from_torch(net(seed=1), 1))  # the fit's weights take their place
    others = [net(0.2), net(running=1.0), net(width=5)]
    assert len({one, *(identity(nets.from_torch(n, 1)) for n in others)}) == 4
    assert one != identity(nets.from_torch(net(), 2))
    # Where a program calls it as it is, its weights count.
    assert identity(net()) == identity(net()) != identity(net(seed=1))

    class Users(torch.nn.Module):
        def __init__(self):
            super().__init__()
            weight_norm = torch.nn.utils.parametrizations.weight_norm
            self.rows, self.out = torch.nn.GRU(3, 4), weight_norm(torch.nn.Linear(4, 2))
            self.register_buffer("low", torch.ones(2, dtype=torch.bfloat16))
            self.register_buffer("hidden", torch.zeros(1), persistent=False)

    one, other = Users(), Users()
    assert identity(nets.from_torch(one)) == identity(nets.from_torch(other))
    other.hidden += 1
    assert identity(nets.from_torch(one)) != identity(nets.from_torch(other))


def test_networks_of_jax_are_their_settings_and_arrays():
    jax, eqx = pytest.importorskip("jax"), pytest.importorskip("equinox")
    linen = pytest.importorskip("flax.linen")

    def net(width=4, seed=0):
        return nets.from_equinox(eqx.nn.MLP(3, 2, width, 1, key=jax.random.key(seed)), 1)

    assert identity(net()) == identity(net())
    assert len({identity(n) for n in (net(), net(5), net(seed=1))}) == 3
    one, other = (nets.from_flax(linen.Sequential([linen.Dense(n), linen.relu])) for n in (3, 4))
    assert identity(one) == identity(nets.from_flax(linen.Sequential([linen.Dense(3), linen.relu])))
    assert identity(one) != identity(other)
    slope = 2.0
    marks = [identity(jax.jit(lambda x, s=s: s * slope * x)) for s in (1.0, 1.0, 2.0)]
    assert marks[0] == marks[1] != marks[2]


# ---- between processes

AGAIN = """
    import sys, functools
    sys.path.insert(0, sys.argv[1])
    import users_program
    from probgen.language.identity import identity
    from probgen.engine.fitted import Fitted
    from probgen.inference import AIS, LikelihoodRegret
    from probgen.inference.ood import CombinedTest, LikelihoodRatio
    fitted = Fitted(users_program.model, {}, constants={"spread": 2.0})
    words = {"one", "two", "three", "four"}
    x = users_program.np.arange(60.0).reshape(20, 3)
    print(identity([fitted, lambda v: v in words, {"a", "b", "c"}, AIS(), LikelihoodRegret(),
                    CombinedTest(x), LikelihoodRatio(fitted)]))
    print(sorted(set(sys.modules) & {"torch", "jax", "pyro", "numpyro"}))
"""


def test_another_process_finds_the_same_and_loads_no_framework(tmp_path):
    """The order of sets, addresses and what ran before are other ones there."""
    (tmp_path / "users_program.py").write_text(textwrap.dedent(USERS))
    found = set()
    for seed in ("1", "2"):  # in which these sets come in different orders
        run = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(AGAIN), str(tmp_path)],
            env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True,
            cwd=Path(__file__).parents[1],
        )  # fmt: skip
        found.add(run.stdout)
    (said,) = found
    mark, loaded = said.split("\n")[:2]
    assert len(mark) == 64 and loaded == "[]"
