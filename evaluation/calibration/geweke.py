"""Geweke's joint test: does a transition kernel keep the posterior of the model it claims?

Two ways to draw (theta, y) from one joint law:

    marginal     theta ~ p(theta),  y ~ p(y | theta), independently each time
    successive   y ~ p(y | theta),  theta ~ K(. | theta, y), in turn

agree if K leaves p(theta | y) unchanged. For functions g of theta and y, by default theta, theta^2,
theta times the mean of y, and log p(theta, y):

    z = (mean_a g - mean_b g) / sqrt(MCSE_a^2 + MCSE_b^2),   right kernels: |z| < 4

A bug that a plain run hides (a dropped Jacobian, a missing accept step, a wrong sign) drives the
successive draws away, since y follows theta. A kernel that never moves keeps every law, so it
cannot be seen here: see the effective sample size, and `chains`.

Source: Geweke 2004, "Getting it right", JASA 99:799.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import numpy as np
from arviz_stats.base import array_stats

from probgen.backends.protocol import Backend
from probgen.engine.fitted import AnyModel
from probgen.engine.spaces import model_target
from probgen.engine.target import require_density
from probgen.errors import AlgorithmError, NonFiniteError, ShapeError
from probgen.evaluation.calibration.study import Study, scalars
from probgen.language.declared import checked
from probgen.language.kinds import Count, Many, Names, Positive, between, having
from probgen.language.seeds import check_seed

LIMIT = 4.0
Samples = Annotated[int, between(20, 10**7)]
Kernelled = Annotated[
    Any,
    having(
        "a sampler with a kernel, such as Langevin(0.1, metropolis=True) (for NUTS use `sbc`)",
        "kernel",
    ),
]
LEAST_ESS = 100.0
LOG_P = "log p"


@dataclasses.dataclass(frozen=True, repr=False)
class Geweke:
    """Two simulators of one joint law, compared. Prints as a table.

    Attributes:
        names: of the functions g.
        marginal, successive: [chain, draw, functions] their values.
        z: [functions] standardised differences of the means, successive minus marginal.
        ess: [functions] effective sample size of the successive draws.
        limit: |z| from which a function is rejected.
    """

    names: tuple[str, ...]
    marginal: np.ndarray
    successive: np.ndarray
    z: np.ndarray
    ess: np.ndarray
    limit: float

    @property
    def rejected(self) -> tuple[str, ...]:
        """Functions whose means differ, by draws enough to say so."""
        flags = (np.abs(self.z) >= self.limit) & (self.ess >= LEAST_ESS)
        return tuple(n for n, flag in zip(self.names, flags, strict=True) if flag)

    @property
    def undecided(self) -> tuple[str, ...]:
        """Functions with too few effective draws for their standard error to be believed."""
        return tuple(n for n, e in zip(self.names, self.ess, strict=True) if not e >= LEAST_ESS)

    @property
    def accepted(self) -> bool:
        """No function differs, and there were draws enough to say so."""
        return not (self.rejected or self.undecided)

    def verdict(self) -> str:
        """What the comparison allows to be said."""
        if self.rejected:
            return f"The kernel does not keep its posterior: {', '.join(self.rejected)} differ."
        if self.undecided:
            return (
                f"Not decided: the chains hardly move in {', '.join(self.undecided)} (effective "
                f"sample size below {LEAST_ESS:.0f}); take more samples or more transitions."
            )
        largest = np.abs(self.z).max()
        return f"No departure was found (largest |z| {largest:.2f}, the limit is {self.limit:g})."

    def to_pandas(self) -> Any:
        """One row a function."""
        import pandas as pd

        return pd.DataFrame(
            {
                "marginal": self.marginal.mean((0, 1)), "successive": self.successive.mean((0, 1)),
                "z": self.z, "ess": self.ess,
            },
            index=pd.Index(self.names, name="function"),
        )  # fmt: skip

    def __repr__(self) -> str:
        width = max(len("function"), *(len(n) for n in self.names))
        lines = [
            f"{'function':{width}}  {'marginal':>11}  {'successive':>11}  {'z':>8}  {'ESS':>8}"
        ]
        table = self.to_pandas()
        order = np.argsort(-np.abs(self.z), kind="stable")
        for i in order[:30]:
            row = table.iloc[i]
            mark = "  rejected" if self.names[i] in self.rejected else ""
            lines.append(
                f"{self.names[i]:{width}}  {row.marginal:11.4g}  {row.successive:11.4g}  "
                f"{row.z:+8.2f}  {row.ess:8.0f}{mark}"
            )
        if len(order) > 30:
            lines.append(f"... and {len(order) - 30} more with smaller |z|")
        return "\n".join([*lines, self.verdict()])

    def plot(self, names: tuple[str, ...] | None = None) -> Any:
        """Figure of quantiles against quantiles of the two simulators."""
        from probgen.evaluation.calibration.figures import geweke_figure

        return geweke_figure(self, names)


@checked
def geweke(
    prior: Callable,
    simulate: Callable,
    step: Callable,
    *,
    log_joint: Callable | None = None,
    functions: Mapping[str, Callable] | None = None,
    num_chains: Many = 100,
    num_samples: Samples = 500,
    num_steps: Count = 1,
    limit: Positive = LIMIT,
    seed: int | None = None,
) -> Geweke:
    """Tests a kernel written in numpy; all chains are one batch on axis 0.

    Args:
        prior: (rng, n) -> theta, [n, ...] or a dict of such arrays.
        simulate: (rng, theta) -> y, one for each row of theta; an array or a dict of arrays.
        step: (rng, theta, y) -> theta, one transition of every row.
        log_joint: (theta, y) -> [n] log p(theta, y), nats, as a further function.
        functions: (theta, y) -> [n] by name, in place of theta, theta^2 and theta y.
        num_chains: chains, each started at a draw of the prior.
        num_samples: of each chain, and as many independent draws.
        num_steps: transitions between two data sets.
        limit: |z| from which a function is rejected.
        seed: an integer.

    Raises:
        MissingSeed: there is no seed.
        ShapeError: theta changes its shape in a step; a function that is not [n].
        NonFiniteError: a function, or the kernel, gives NaN or infinity.
        DeclarationError: too few chains or samples, an argument of the wrong kind.
    """
    rng = np.random.default_rng(check_seed(seed, "geweke"))

    def measure(theta, y):
        return _functions(theta, y, log_joint, functions)

    theta = prior(rng, num_chains * num_samples)
    independent = measure(theta, simulate(rng, theta))
    theta = prior(rng, num_chains)
    shapes = {n: np.shape(v) for n, v in _named(theta).items()}
    along = []
    for _ in range(num_samples):
        y = simulate(rng, theta)
        for _ in range(num_steps):
            theta = step(rng, theta, y)
        found = {n: np.shape(v) for n, v in _named(theta).items()}
        if found != shapes:
            raise ShapeError(
                f"geweke: got theta of shape {found} from the step, expected {shapes} as it was "
                "given; return a new theta for every row."
            )
        along.append(measure(theta, y))
    names = tuple(independent)
    marginal = np.stack([independent[n].reshape(num_chains, num_samples) for n in names], -1)
    successive = np.stack([np.stack([a[n] for a in along], 1) for n in names], -1)
    return _compare(names, marginal, successive, limit)


@checked
def geweke_model(
    model: AnyModel,
    method: Kernelled,
    *,
    observed: Names = None,
    num_chains: Many = 200,
    num_samples: Samples = 200,
    num_steps: Count = 1,
    limit: Positive = LIMIT,
    seed: int | None = None,
    backend: str | Backend = "auto",
    device: str = "auto",
) -> Geweke:
    """Tests a kernel of probgen on the latents of a model, one chain a datum.

    Args:
        model: a declaration or a `Fitted`, with all latents inside the data plate.
        method: such as `Langevin(0.1, metropolis=True)`: a `Sampler`
            whose kernel moves many chains at once.
        observed: the sites that stand for data; None is ("x",).
        the rest: as in `geweke`.

    Raises:
        AlgorithmError: a global or discrete latent, a density without prior draws.
        the rest: as in `geweke`.
    """
    seed = check_seed(seed, "geweke_model")
    study = Study(
        model, observed=observed, num_data=num_chains, inputs=None, seed=seed, backend=backend,
        device=device, who="geweke_model",
    )  # fmt: skip
    b, bound = study.backend, study.bound
    space = model_target(bound, "latent")
    kernel, log_density = method.kernel(b, space), require_density(space, "geweke_model")

    def draw(params: Any, key: Any, latents: Any = None) -> tuple[Any, Any]:
        sites = bound.trace(params, {}, latents, key=key, batch_size=num_chains, condition=False)
        return {n: sites[n].value for n in space.names}, {n: sites[n].value for n in bound.observed}

    def run(params: Any, key: Any) -> Any:
        key_a, key_b, key_start = b.split(key, 3)

        def alone(carry: Any, k: Any) -> tuple[Any, Any]:
            z, y = draw(params, k)
            return carry, (z, y, log_density(space.enter(z, params, y), params, y))

        def in_turn(z: Any, k: Any) -> tuple[Any, Any]:
            keys = b.split(k, num_steps + 1)
            _, y = draw(params, keys[0], z)
            state = kernel.init(space.enter(z, params, y), params, y)
            for i in range(num_steps):
                state, _ = kernel.step(keys[i + 1], state, params, y)
            values = space.values(state.x, params, y)
            z = {n: values[n] for n in space.names}
            return z, (z, y, log_density(state.x, params, y))

        first, _ = draw(params, key_start)
        _, a = b.scan(alone, first, b.split(key_a, num_samples))
        _, c = b.scan(in_turn, first, b.split(key_b, num_samples))
        return a, c

    found = b.compile(run, over="steps")(study.params, b.key(seed))
    tables = []
    for z, y, log_p in found:

        def flat(tree):
            return {
                n: b.to_numpy(v).reshape(num_samples * num_chains, *v.shape[2:])
                for n, v in tree.items()
            }

        values = _functions(flat(z), flat(y), lambda *_, v=log_p: b.to_numpy(v).reshape(-1), None)
        tables.append({n: v.reshape(num_samples, num_chains).T for n, v in values.items()})
    names = tuple(tables[0])
    marginal, successive = (np.stack([t[n] for n in names], -1) for t in tables)
    return _compare(names, marginal, successive, limit)


def _named(value: Any) -> dict[str, np.ndarray]:
    named = value if isinstance(value, Mapping) else {"theta": value}
    return {n: np.asarray(v, np.float64) for n, v in named.items()}


def _functions(
    theta: Any, y: Any, log_joint: Callable | None, functions: Mapping[str, Callable] | None
) -> dict[str, np.ndarray]:
    """[n] each function of every row."""
    latents = _named(theta)
    num = len(next(iter(latents.values())))
    out: dict[str, np.ndarray] = {}
    if functions is None:
        data = {n: v.reshape(num, -1).mean(1) for n, v in _named(y).items()}
        several = len(data) > 1
        for name, value in scalars(latents, 1).items():
            out[name] = value
            out[f"{name}^2"] = value**2
            for site, mean in data.items():
                out[f"{name} {site if several or isinstance(y, Mapping) else 'y'}"] = value * mean
    else:
        out.update({n: np.asarray(fn(theta, y), np.float64) for n, fn in functions.items()})
    if log_joint is not None:
        out[LOG_P] = np.asarray(log_joint(theta, y), np.float64)
    for name, value in out.items():
        if value.shape != (num,):
            raise ShapeError(
                f"geweke: got {name!r} of shape {value.shape}, expected ({num},), one number for "
                "each row of theta."
            )
        if not np.isfinite(value).all():
            raise NonFiniteError(
                f"geweke: got NaN or infinity in {name!r}, expected finite numbers: the kernel "
                "diverges, or the function is not defined there; lower the step size."
            )
    return out


def _compare(
    names: tuple[str, ...], marginal: np.ndarray, successive: np.ndarray, limit: float
) -> Geweke:
    z, ess = np.empty(len(names)), np.empty(len(names))
    for j, name in enumerate(names):
        a, c = marginal[..., j], successive[..., j]
        if np.ptp(a) == 0 or np.ptp(c) == 0:
            raise AlgorithmError(
                f"geweke: {name!r} is the same in all draws, expected a random quantity; leave it "
                "out by giving functions of your own."
            )
        # The marginal draws are independent: one long chain.
        error_a = float(array_stats.mcse(a.reshape(1, -1), method="mean"))
        error_c = float(array_stats.mcse(c, method="mean"))
        z[j] = (c.mean() - a.mean()) / np.hypot(error_a, error_c)
        ess[j] = float(array_stats.ess(c, method="mean"))
    return Geweke(names, marginal, successive, z, ess, limit)
