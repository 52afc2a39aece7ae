"""Law 1: two backends, one declaration, the same log joint and the same gradient.

Programs are composed by hypothesis (trees of plates, a data plate, global and local latents,
distributions with parameters that depend on earlier sites by nets, factors, deterministic sites);
families of `probgen.models` are one line each in `FAMILIES`. Both see the same parameters (drawn
once, in numpy) and the same values. Agreement is relative 1e-5 in float32, relative to the largest
term: a sum of terms that cancel cannot be known better than its terms.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import probgen as pg
from probgen import backends, dist, nets, ops
from probgen.engine.bind import bind
from probgen.engine.bound import Bound
from probgen.models import EBM, VAE, Diffusion, Generator, NoiseSchedule, Tilted, likelihoods
from probgen.models.flow import Coupling, Flow
from probgen.models.gradient_flow import GradientFlowGenerator
from probgen.trees import tree_items, tree_map

BATCH = 3
RTOL = 1e-5
BOTH = all(backends.available().values())
pytestmark = pytest.mark.skipif(not BOTH, reason="law 1 compares torch with jax: one is missing")


# ---- random programs -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Statement:
    """One line of a random program; a plate has a body.

    word: "sample", "factor", "deterministic", "plate" or "data"; name: of the site or plate;
    family: of a sample; size: of its event (0 for a scalar) or of the plate; parent: which earlier
    variable in scope its parameters depend on (None: constants); by_net: through an MLP.
    """

    word: str
    name: str
    family: str = ""
    size: int = 0
    parent: int | None = None
    by_net: bool = False
    body: tuple[Statement, ...] = ()


def positive(x):
    return ops.softplus(x) + 0.3


# family -> (declaration from two unconstrained arrays, numpy draw in its support).
# a, b: [*plates] or [*plates, size]; the draw gets a shape.
SCALARS = {
    "Normal": (lambda a, b: dist.Normal(a, positive(b)), lambda r, s: r.normal(size=s)),
    "Laplace": (lambda a, b: dist.Laplace(a, positive(b)), lambda r, s: r.normal(size=s)),
    "Logistic": (lambda a, b: dist.Logistic(a, positive(b)), lambda r, s: r.normal(size=s)),
    "Cauchy": (lambda a, b: dist.Cauchy(a, positive(b)), lambda r, s: r.normal(size=s)),
    "StudentT": (lambda a, b: dist.StudentT(3.0, a, positive(b)), lambda r, s: r.normal(size=s)),
    "Gumbel": (lambda a, b: dist.Gumbel(a, positive(b)), lambda r, s: r.normal(size=s)),
    "LogNormal": (lambda a, b: dist.LogNormal(a, positive(b)), lambda r, s: r.gamma(2, 1, s)),
    "Gamma": (lambda a, b: dist.Gamma(positive(a), positive(b)), lambda r, s: r.gamma(2, 1, s)),
    "InverseGamma": (
        lambda a, b: dist.InverseGamma(positive(a), positive(b)),
        lambda r, s: r.gamma(3, 1, s) + 0.2,
    ),
    "Exponential": (lambda a, b: dist.Exponential(positive(a)), lambda r, s: r.gamma(2, 1, s)),
    "HalfNormal": (lambda a, b: dist.HalfNormal(positive(a)), lambda r, s: r.gamma(2, 1, s)),
    "Weibull": (lambda a, b: dist.Weibull(positive(a), positive(b)), lambda r, s: r.gamma(2, 1, s)),
    "Beta": (
        lambda a, b: dist.Beta(positive(a), positive(b)),
        lambda r, s: r.uniform(0.1, 0.9, s),
    ),
    "Bernoulli": (lambda a, b: dist.Bernoulli(logits=a), lambda r, s: r.integers(0, 2, s) * 1.0),
    "Poisson": (lambda a, b: dist.Poisson(positive(a)), lambda r, s: r.poisson(2, s) * 1.0),
    "Geometric": (lambda a, b: dist.Geometric(logits=a), lambda r, s: r.poisson(2, s) * 1.0),
    "Binomial": (
        lambda a, b: dist.Binomial(total_count=5, logits=a),
        lambda r, s: r.integers(0, 6, s) * 1.0,
    ),
    "NegativeBinomial": (
        lambda a, b: dist.NegativeBinomial(total_count=4.0, logits=a),
        lambda r, s: r.poisson(3, s) * 1.0,
    ),
    "DiscretizedLogistic": (
        lambda a, b: dist.DiscretizedLogistic(a, positive(b), num_levels=8),
        lambda r, s: r.integers(0, 8, s) / 7,
    ),
}
VECTORS = {
    "MultivariateNormal": (
        lambda a, b: dist.MultivariateNormal(
            a, scale_tril=ops.eye_like(a.shape[-1], a) * positive(b)[..., None]
        ),
        lambda r, s: r.normal(size=s),
    ),
    "Dirichlet": (
        lambda a, b: dist.Dirichlet(positive(a)),
        lambda r, s: r.dirichlet(np.full(s[-1], 2.0), s[:-1]),
    ),
    "Categorical": (lambda a, b: dist.Categorical(logits=a), None),  # its own event is a scalar
}
CONTINUOUS = set(SCALARS) - {
    "Bernoulli", "Poisson", "Geometric", "Binomial", "NegativeBinomial", "DiscretizedLogistic",
} | {"MultivariateNormal", "Dirichlet"}  # fmt: skip


@st.composite
def programs(draw, max_statements: int = 6) -> tuple[Statement, ...]:
    """A random program, at most two plates deep; the data plate keeps to one depth, as it must."""
    counter = iter(range(1000))
    data_depth = draw(st.sampled_from([0, 0, 1]))

    def statement(depth: int, scope: int, in_data: bool) -> tuple[Statement, bool]:
        words = ["sample", "sample", "sample", "factor", "deterministic"]
        words += ["plate"] if depth < 2 else []
        words += ["data"] if depth == data_depth and not in_data else []
        word = draw(st.sampled_from(words))
        name = f"{word}{next(counter)}"
        if word in ("plate", "data"):
            size = draw(st.sampled_from([2, 4])) if word == "plate" else BATCH
            inner = block(depth + 1, scope, in_data or word == "data", 3)
            return Statement(word, name, size=size, body=inner), False
        parent = draw(st.one_of(st.none(), st.integers(0, scope - 1))) if scope else None
        if word != "sample":
            return Statement(word, name, parent=parent), False
        family = draw(st.sampled_from([*SCALARS, *VECTORS]))
        size = draw(st.sampled_from([2, 3])) if family in VECTORS else draw(st.sampled_from([0, 2]))
        by_net = parent is not None and draw(st.booleans())
        return Statement(word, name, family, size, parent, by_net), True

    def block(depth: int, scope: int, in_data: bool, most: int) -> tuple[Statement, ...]:
        out = []
        for _ in range(draw(st.integers(1, most))):
            made, is_variable = statement(depth, scope, in_data)
            scope += is_variable
            out.append(made)
        return tuple(out)

    return block(0, 0, False, max_statements)


def summary(value: Any, event_ndim: int) -> Any:
    """A bounded number per plate cell that depends on all of a value."""
    total = value * 1.0
    for _ in range(event_ndim):
        total = ops.sum(total, axis=-1)
    return ops.tanh(0.5 * total)


def parameters(line: Statement, scope: list) -> tuple[Any, Any]:
    """Two unconstrained arrays for a distribution: constants, a function of a parent, or a net."""
    shape = (line.size,) if line.size else ()
    grid = np.linspace(-0.7, 0.9, max(line.size, 1)).astype(np.float32)
    constant = grid if line.size else float(grid[0])
    if line.parent is None:
        if not line.size:
            return 0.3, -0.4
        array = pg.net("constants", nets.Parameter((4,)))()  # an array of the running backend
        return array[: line.size] + 0.3, array[: line.size] * 0.5 - 0.1
    value, event_ndim = scope[line.parent]
    s = summary(value, event_ndim)
    if line.by_net:
        net = nets.MLP(hidden=(4,), out=2 * max(line.size, 1), activation="tanh")
        out = pg.net(f"net_{line.name}", net)(s[..., None])
        if not line.size:
            return out[..., 0], out[..., 1]
        return out[..., : line.size], out[..., line.size :]
    wide = s[..., None] if shape else s
    like = ops.asarray_like(constant, wide)
    return wide * like + 0.2, wide - like


def interpret(lines: tuple[Statement, ...], scope: list) -> None:
    """Runs the statements; variables of a closed plate leave the scope."""
    scope = list(scope)
    for line in lines:
        if line.word == "plate":
            with pg.plate(line.name, line.size):
                interpret(line.body, scope)
        elif line.word == "data":
            with pg.data_plate():
                interpret(line.body, scope)
        elif line.word == "sample":
            table = SCALARS if line.family in SCALARS else VECTORS
            declared = table[line.family][0](*parameters(line, scope))
            scalar_event = line.family == "Categorical" or line.size == 0
            if line.size and line.family in SCALARS:
                declared = declared.to_event(1)
            value = pg.sample(line.name, declared)
            scope.append((value, 0 if scalar_event else 1))
        else:
            value, event_ndim = scope[line.parent] if line.parent is not None else (None, 0)
            s = 0.25 if value is None else summary(value, event_ndim)
            pg.factor(line.name, s * 0.5) if line.word == "factor" else pg.deterministic(
                line.name, s
            )


def make_model(lines: tuple[Statement, ...]) -> Any:
    @pg.model
    def program():
        interpret(lines, [])

    return program


def has_data(lines: tuple[Statement, ...]) -> bool:
    return any(line.word == "data" or has_data(line.body) for line in lines)


def numpy_values(lines: tuple[Statement, ...], rng: Any, plates: tuple[int, ...] = ()) -> dict:
    """Values for every sample site: [*inner plates, *outer plates, *event], float32."""
    out = {}
    for line in lines:
        if line.word in ("plate", "data"):
            out |= numpy_values(line.body, rng, (line.size, *plates))
        elif line.word == "sample":
            if line.family == "Categorical":
                out[line.name] = rng.integers(0, line.size, plates).astype(np.int32)
                continue
            table = SCALARS if line.family in SCALARS else VECTORS
            shape = (*plates, line.size) if line.size else plates
            drawn = table[line.family][1](rng, shape if shape else ())
            out[line.name] = np.asarray(drawn, np.float32)
    return out


def samples(lines: tuple[Statement, ...]) -> dict[str, Statement]:
    out = {}
    for line in lines:
        out |= {line.name: line} if line.word == "sample" else samples(line.body)
    return out


# ---- the law -------------------------------------------------------------------------------------


def log_joint_and_gradient(
    bound: Bound, params: dict, batch: dict, latents: dict, moving: set[str], **options: Any
) -> tuple[dict, dict]:
    """Each site's log-probability, and the gradient of their sum by parameters and latents."""
    b = bound.backend
    still = {k: b.asarray(v) for k, v in latents.items() if k not in moving}
    rows = {k: b.asarray(v) for k, v in batch.items()}

    def total(tree: dict) -> Any:
        sites = bound.trace(tree["params"], rows, {**still, **tree["latents"]}, **options)
        kept = {n: s.log_prob for n, s in sites.items() if s.log_prob is not None}
        return sum((b.ops.sum(v) for v in kept.values()), start=b.asarray(np.float32(0))), kept

    tree = {
        "params": params,
        "latents": {k: b.asarray(v) for k, v in latents.items() if k in moving},
    }
    (_, kept), grads = b.compile(b.value_and_grad(total, has_aux=True), num_calls=1)(tree)
    to_numpy = {n: b.to_numpy(v) for n, v in kept.items()}
    return to_numpy, {"/".join(path): b.to_numpy(leaf) for path, leaf in tree_items(grads)}


def assert_agree(one: dict, other: dict, what: str) -> None:
    """Relative to the largest entry of the whole collection, and to one."""
    assert set(one) == set(other)
    size = max([1.0, *(float(np.abs(v).max(initial=0.0)) for v in one.values())])
    for name in one:
        assert one[name].shape == other[name].shape, f"{what} {name}"
        assert np.isfinite(one[name]).all(), f"{what} {name} is not finite"
        np.testing.assert_allclose(
            other[name], one[name], rtol=RTOL, atol=RTOL * size, err_msg=f"{what} {name}"
        )


def assert_backends_agree(
    model: Any, batch: dict, latents: dict, moving: set[str], scale: float = 1.0, **options: Any
) -> None:
    """The law for one model; parameters are those of its declaration, moved off zero."""
    found = []
    for name in ("torch", "jax"):
        b = backends.load(name, "cpu")
        bound, params = bind(model, b, data=batch, seed=3)
        rng = np.random.default_rng(5)
        moved = tree_map(
            lambda p, b=b, rng=rng: b.asarray(
                b.to_numpy(p) + scale * 0.1 * rng.normal(size=np.shape(p)).astype(np.float32)
            ),
            params,
        )
        found.append(log_joint_and_gradient(bound, moved, batch, latents, moving, **options))
    assert_agree(found[0][0], found[1][0], "log-probability of")
    assert_agree(found[0][1], found[1][1], "gradient by")


@settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow])
@given(lines=programs(), seed=st.integers(0, 2**16))
def test_random_programs_agree_on_both_backends(lines, seed):
    values = numpy_values(lines, np.random.default_rng(seed))
    moving = {n for n, line in samples(lines).items() if line.family in CONTINUOUS}
    batch_size = BATCH if has_data(lines) else None
    assert_backends_agree(make_model(lines), {}, values, moving, batch_size=batch_size)


# ---- the shipped families ------------------------------------------------------------------------

LATENT = dist.Normal(0, 1).expand([2]).to_event(1)
RNG = np.random.default_rng(0)


def vae(likelihood: Any, out: Any = 6, **options: Any) -> VAE:
    encoder = nets.MLP(hidden=(7,), out=2, heads=("loc", "log_scale"))
    return VAE(LATENT, nets.MLP(hidden=(7,), out=out), likelihood, encoder, **options)


def levels(count: int, shape: tuple[int, ...] = (BATCH, 6)) -> np.ndarray:
    return (RNG.integers(0, count, shape) / (count - 1)).astype(np.float32)


Z = RNG.normal(size=(BATCH, 2)).astype(np.float32)
REAL = RNG.normal(size=(BATCH, 6)).astype(np.float32)
BINARY = (RNG.random((BATCH, 6)) < 0.5).astype(np.float32)
CLASSES = RNG.integers(0, 5, (BATCH, 6)).astype(np.int32)
CHAIN = {f"x_{t}": RNG.normal(size=(BATCH, 6)).astype(np.float32) for t in range(1, 4)}
DENOISER = nets.MLP(hidden=(8,), out=6)


@dataclasses.dataclass(frozen=True)
class Family:
    """A shipped declaration, its data, and its latents (all of which move)."""

    model: Any
    batch: dict
    latents: dict


FAMILIES = {
    "VAE Bernoulli": Family(vae(dist.Bernoulli), {"x": BINARY}, {"z": Z}),
    "VAE Bernoulli image": Family(
        vae(dist.Bernoulli, (2, 3, 1)), {"x": BINARY.reshape(BATCH, 2, 3, 1)}, {"z": Z}
    ),
    "VAE Normal learned": Family(vae(dist.Normal), {"x": REAL}, {"z": Z}),
    "VAE Normal fixed": Family(vae(likelihoods.Normal(0.3)), {"x": REAL}, {"z": Z}),
    "VAE Normal predicted": Family(vae(likelihoods.Normal("predicted")), {"x": REAL}, {"z": Z}),
    "VAE DiscretizedLogistic": Family(
        vae(likelihoods.DiscretizedLogistic(16)), {"x": levels(16)}, {"z": Z}
    ),
    "VAE Categorical": Family(vae(likelihoods.Categorical(5)), {"x": CLASSES}, {"z": Z}),
    "VAE full covariance": Family(vae(dist.Normal, guide_kind="full"), {"x": REAL}, {"z": Z}),
    "VAE hierarchical": Family(
        VAE(
            VAE(LATENT, nets.MLP(hidden=(5,), out=3), likelihoods.Normal(0.5),
                nets.MLP(hidden=(5,), out=2, heads=("loc", "log_scale"))),
            nets.MLP(hidden=(5,), out=6), dist.Bernoulli,
            nets.MLP(hidden=(5,), out=3, heads=("loc", "log_scale")),
        ),
        {"x": BINARY},
        {"z": RNG.normal(size=(BATCH, 3)).astype(np.float32), "prior/z": Z},
    ),
    "Generator": Family(
        Generator(LATENT, nets.MLP(hidden=(7,), out=6), dist.Normal), {"x": REAL}, {"z": Z}
    ),
    "EBM": Family(
        EBM(nets.MLPEnergy(hidden=(8,)), dist.Normal(0, 1).expand([6]).to_event(1)),
        {"x": REAL}, {},
    ),
    "Tilted generator": Family(
        Tilted(Generator(LATENT, nets.MLP(hidden=(7,), out=6), dist.Normal),
               nets.MLPEnergy(hidden=(8,))),
        {"x": REAL}, {"z": Z},
    ),
    "Flow, tilted": Family(
        Tilted(Flow(6, Coupling(nets.MLP((5,))), num_layers=2), nets.MLPEnergy(hidden=(8,))),
        {"x": REAL}, {},
    ),
    "GradientFlowGenerator": Family(
        GradientFlowGenerator(nets.MLPEnergy((4,)), dist.Normal(0, 1).expand([6]).to_event(1),
                              num_steps=2, num_newton=1),
        {"x": REAL}, {},
    ),
    "Tilted VAE on z": Family(
        Tilted(vae(dist.Bernoulli), nets.MLPEnergy(hidden=(8,)), on="z"), {"x": BINARY}, {"z": Z}
    ),
    **{
        f"Diffusion {kind}": Family(
            Diffusion(DENOISER, (6,), NoiseSchedule(3, schedule), kind), {"x": REAL}, CHAIN
        )
        for kind, schedule in (
            ("epsilon", "linear"), ("sample", "scaled_linear"),
            ("v_prediction", "squaredcos_cap_v2"),
        )
    },
}  # fmt: skip
GUIDES = ["VAE Bernoulli image", "VAE full covariance", "VAE hierarchical"]
OTHERS = ["VAE Normal predicted", "VAE Categorical", "Tilted generator", "Tilted VAE on z"]


@pytest.mark.parametrize("name", FAMILIES)
def test_families_agree_on_both_backends(name):
    family = FAMILIES[name]
    assert_backends_agree(family.model, family.batch, family.latents, set(family.latents))


@pytest.mark.parametrize("name", GUIDES + OTHERS)
def test_families_agree_with_a_particle_axis(name):
    """[K, batch] log-probabilities, gradients summed over both."""
    family = FAMILIES[name]
    latents = {
        k: np.stack([v, v * 0.5 - 0.2]).astype(np.float32) for k, v in family.latents.items()
    }
    assert_backends_agree(family.model, family.batch, latents, set(latents), num_particles=2)


@pytest.mark.parametrize("name", GUIDES)
def test_guides_agree_on_both_backends(name):
    """log q(z | x) and its gradient, at given latents."""
    family, found = FAMILIES[name], []
    for which in ("torch", "jax"):
        b = backends.load(which, "cpu")
        bound, params = bind(family.model, b, data=family.batch, seed=3)
        rows = {k: b.asarray(v) for k, v in family.batch.items()}
        latents = {k: b.asarray(v) for k, v in family.latents.items()}

        def total(params, bound=bound, rows=rows, latents=latents):
            sites = bound.trace_guide(params, rows, latents=latents)
            kept = {n: s.log_prob for n, s in sites.items()}
            return sum(bound.backend.ops.sum(v) for v in kept.values()), kept

        (_, kept), grads = b.compile(b.value_and_grad(total, has_aux=True), num_calls=1)(params)
        named = {"/".join(p): b.to_numpy(g) for p, g in tree_items(grads)}
        found.append(({n: b.to_numpy(v) for n, v in kept.items()}, named))
    assert_agree(found[0][0], found[1][0], "log q of")
    assert_agree(found[0][1], found[1][1], "gradient by")


def test_a_hierarchy_of_three_priors_agrees_and_its_latents_are_named():
    """A Generator whose prior is a Generator whose prior is a Generator."""
    bottom = Generator(LATENT, nets.MLP(hidden=(4,), out=2), likelihoods.Normal(0.5))
    middle = Generator(bottom, nets.MLP(hidden=(4,), out=2), likelihoods.Normal(0.5))
    top = Generator(middle, nets.MLP(hidden=(4,), out=6), likelihoods.Normal(0.5))
    latents = {"z": Z, "prior/z": Z * 0.5, "prior/prior/z": Z - 0.3}
    assert_backends_agree(top, {"x": REAL}, latents, set(latents))
