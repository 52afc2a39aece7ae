"""Geweke's joint test accepts right kernels and rejects the usual bugs, in numpy and in models."""

import dataclasses

import numpy as np
import pytest
from scipy.special import gammaln

import probgen as pg
from probgen import dist
from probgen.errors import AlgorithmError, DeclarationError, MissingSeed, NonFiniteError, ShapeError
from probgen.evaluation.calibration import geweke, geweke_model
from probgen.inference import HMC, Langevin

# ---- numpy: theta ~ Gamma(3, 1), y_1, y_2 ~ Poisson(theta); walks on log theta


def prior(rng, n):
    return rng.gamma(3.0, size=n)


def simulate(rng, theta):
    return rng.poisson(theta[:, None], size=(len(theta), 2))


def log_joint(theta, y):
    log = np.log(theta)
    likelihood = y.sum(1) * log - 2 * theta - gammaln(y + 1).sum(1)
    return 2 * log - theta - gammaln(3.0) + likelihood


def walk(rng, theta, y, jacobian=1.0, flip=1.0):
    """Random-walk Metropolis on log theta; d theta / d log theta = theta is in the ratio."""
    new = theta * np.exp(0.7 * rng.normal(size=theta.shape))
    ratio = flip * (log_joint(new, y) - log_joint(theta, y)) + jacobian * np.log(new / theta)
    return np.where(np.log(rng.random(theta.shape)) < ratio, new, theta)


def run(step, **options):
    settings = {"num_chains": 50, "num_samples": 300, "seed": 0, "log_joint": log_joint}
    return geweke(prior, simulate, step, **{**settings, **options})


def test_a_right_kernel_is_accepted():
    result = run(walk)
    assert result.names == ("theta", "theta^2", "theta y", "log p")
    assert np.abs(result.z).max() < 4 and result.accepted and result.ess.min() > 300
    # Gamma(3, 1): E theta = 3, E theta^2 = 12 = E theta y.
    for j, mean in enumerate((3.0, 12.0, 12.0)):
        a = result.marginal[..., j]
        assert abs(a.mean() - mean) < 5 * a.std() / np.sqrt(a.size)


BUGS = {
    "dropped Jacobian": lambda *a: walk(*a, jacobian=0.0),
    "Jacobian's sign": lambda *a: walk(*a, jacobian=-1.0),
    "half the log density": lambda *a: walk(*a, flip=0.5),
    "no accept step": lambda rng, theta, y: (
        (3 * theta) ** 0.5 * np.exp(0.7 * rng.normal(size=len(y)))
    ),
    "stale data": lambda rng, theta, y: walk(rng, theta, y[::-1]),
}


@pytest.mark.parametrize("name", BUGS)
def test_bugs_are_rejected(name):
    result = run(BUGS[name])
    assert result.rejected and not result.accepted
    assert "does not keep" in repr(result)


def test_right_kernels_give_standard_normal_z():
    """Over seeds: variance one, so that |z| < 4 means what it says."""
    z = np.concatenate([run(walk, seed=s, num_samples=150).z[:3] for s in range(25)])
    assert 0.5 < z.std() < 1.6 and np.abs(z).max() < 4


def test_a_kernel_that_hardly_moves_is_not_called_right():
    result = run(lambda rng, theta, y: theta, num_chains=20, num_samples=50)
    assert result.undecided and not result.accepted and "Not decided" in result.verdict()


def test_dicts_and_own_functions_are_read():
    result = geweke(
        lambda rng, n: {"a": rng.normal(size=(n, 2))},
        lambda rng, t: {"u": t["a"][:, 0] + rng.normal(size=len(t["a"]))},
        lambda rng, t, y: {  # Gibbs
            "a": np.stack(
                [
                    y["u"] / 2 + np.sqrt(0.5) * rng.normal(size=len(y["u"])),
                    rng.normal(size=len(y["u"])),
                ],
                axis=1,
            )
        },
        num_chains=50, num_samples=100, num_steps=2, seed=1,
    )  # fmt: skip
    assert result.names == ("a[0]", "a[0]^2", "a[0] u", "a[1]", "a[1]^2", "a[1] u")
    assert result.accepted and len(result.plot().axes) == 6
    own = run(walk, functions={"even": lambda t, y: (y[:, 0] % 2 == 0) * 1.0}, log_joint=None)
    assert own.names == ("even",) and own.accepted


# ---- models on backends


@pg.model
def local():
    with pg.data_plate():
        z = pg.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pg.sample("x", dist.Normal(z[..., 0] + 0.5 * z[..., 1] ** 2, 0.7))


RIGHT = {
    "MALA": Langevin(0.2, metropolis=True, preconditioner=np.float32([1.5, 0.8])),
    "HMC": HMC(num_steps=3, step_size=0.4, jitter=0.5, adapt_step_size=False),
}


HMC_TOO = pytest.param("HMC", marks=pytest.mark.repeated("test_mala_and_hmc_are_accepted"))


@pytest.mark.parametrize("name", ["MALA", HMC_TOO])
def test_mala_and_hmc_are_accepted(name, b):
    options = {"num_chains": 100, "num_samples": 100, "seed": 0, "backend": b}
    right = geweke_model(local, RIGHT[name], **options)
    assert np.abs(right.z).max() < 4 and right.accepted, right
    assert right.names == ("z[0]", "z[0]^2", "z[0] x", "z[1]", "z[1]^2", "z[1] x", "log p")


@pytest.mark.repeated("test_a_spoilt_density_is_rejected")
def test_ula_is_rejected(b):
    wrong = geweke_model(local, Langevin(0.2), num_chains=100, num_samples=100, seed=0, backend=b)
    assert "log p" in wrong.rejected


@dataclasses.dataclass(frozen=True)
class Spoilt:
    """MALA on a density that was spoilt on the way."""

    spoil: object

    def kernel(self, backend, target):
        def other(x, params, batch):
            return self.spoil(target.log_density(x, params, batch), x["z"], batch["x"])

        return Langevin(0.1, metropolis=True).kernel(backend, target._replace(log_density=other))


def test_a_spoilt_density_is_rejected(b):
    """The gradient's sign of the likelihood."""
    spoilt = Spoilt(lambda p, z, x: -p - (z * z).sum(-1))
    options = {"num_chains": 100, "num_samples": 60, "num_steps": 3, "seed": 0, "backend": b}
    result = geweke_model(local, spoilt, **options)
    assert result.rejected, result


@pg.model
def shared():
    mu = pg.sample("mu", dist.Normal(0.0, 1.0).expand([1]).to_event(1))
    with pg.data_plate():
        pg.sample("x", dist.Normal(mu[0], 1.0))


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: run(walk, seed=None), MissingSeed, "no seed"),
        (lambda: run(walk, num_samples=3), DeclarationError, "num_samples=3"),
        (lambda: run(lambda rng, t, y: t[:1]), ShapeError, "every row"),
        (lambda: run(lambda rng, t, y: t * np.nan), NonFiniteError, "kernel diverges"),
        (lambda: run(walk, functions={"g": lambda t, y: y}), ShapeError, "'g'"),
        (
            lambda: run(walk, log_joint=None, functions={"g": lambda t, y: 0 * t}),
            AlgorithmError, "'g' is the same",
        ),
        (lambda: geweke_model(local, "mala", seed=0), DeclarationError, "use `sbc`"),
        (
            lambda: geweke_model(shared, Langevin(0.1), seed=0, num_chains=3, num_samples=20),
            AlgorithmError, "'mu' is global",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_tested_is_refused(call, kind, words):
    with pytest.raises(kind, match=words):
        call()
