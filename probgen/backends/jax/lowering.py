"""A program's words on NumPyro: what a `Run` on JAX calls, and how its trace becomes sites."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as numpyro_dist

from probgen.backends import constants
from probgen.backends.jax import ops as jax_ops
from probgen.backends.jax.devices import placing
from probgen.backends.jax.distributions import (
    BERNOULLI,
    OWN,
    SeriesLaw,
    WrittenLaw,
    bijection,
    has_moving_support,
    is_inside,
    noise_map,
    under,
)
from probgen.backends.lowering import (
    STRUCTURE,
    BaseLowering,
    as_site,
    declarations,
    held_inputs,
    numpy_in_words,
)
from probgen.backends.protocol import Site
from probgen.backends.series import Series
from probgen.backends.turns import numpyro_turn
from probgen.backends.written import stand_in
from probgen.errors import AlgorithmError
from probgen.language import domains
from probgen.language.run import DATA_PLATE, NO_BIJECTION, Run, running


class Lowering(BaseLowering):
    """The hands of one run on JAX."""

    ops = jax_ops
    library = "NumPyro"
    framework = "jax"
    classes = numpyro_dist
    written_class = WrittenLaw
    series_class = SeriesLaw
    bijection = staticmethod(bijection)
    own = OWN
    renamed: ClassVar = {
        "LKJ": {"dim": "dimension"},
        "LKJCholesky": {"dim": "dimension"},
    }

    def argument(self, name: str, value: Any) -> Any:
        """Numbers as floats, lists and numpy as arrays; what shapes the distribution as it is."""
        if name in STRUCTURE or isinstance(value, bool | str):
            return value
        if isinstance(value, int):
            return float(value)
        if isinstance(value, list | np.ndarray):
            return jnp.asarray(np.asarray(value), dtype=jnp.result_type(float))
        return value

    def sample(self, name: str, fn: Any, obs: Any) -> Any:
        return numpyro.sample(name, fn, obs=self.value_of(name, fn, obs))

    def onto_support(self, name: str, fn: Any) -> Any:
        """NumPyro's bijection from the real line onto a distribution's support.

        Raises:
            AlgorithmError: there is none.
        """
        try:
            return numpyro_dist.biject_to(fn.support)
        except NotImplementedError as error:
            raise AlgorithmError(NO_BIJECTION.format(name=name, support=fn.support)) from error

    def value_of(self, name: str, fn: Any, obs: Any) -> Any:
        """A site's value: the one that is given, else its own `obs`, else a draw."""
        value = self.values.get(name, obs)
        return self._draw(name, fn) if value is None else value

    def _draw(self, name: str, fn: Any) -> Any:
        found, batch = noise_map(fn), self.batch_of(fn)
        if found is not None:
            return found.value(self.normal(name, fn, found, batch))
        self.needed_noise(name, fn, None)
        if self.undrawn(fn):
            return stand_in(fn, jnp.zeros(()), batch)
        self._refuse_rows(name, fn)
        return _drawn(fn, batch, self._site_key(name))

    def _site_key(self, name: str) -> Any:
        number, fold = zlib.crc32(name.encode()) & 0x7FFFFFFF, jax.random.fold_in
        is_rows = self.key.ndim == 1
        return jax.vmap(lambda k: fold(k, number))(self.key) if is_rows else fold(self.key, number)

    def _refuse_rows(self, name: str, fn: Any) -> None:
        if self.key.ndim == 1:
            self.data_axis(name, fn, None, 0)

    def normal(self, name: str, fn: Any, found: Any, batch: tuple[int, ...]) -> Any:
        """The noise of a site, [*batch, *found.shape]: as it is given, else from the key."""
        eps = self.needed_noise(name, fn, found)
        if eps is not None:
            return eps
        key, shape = self._site_key(name), (*batch, *found.shape)
        if self.key.ndim == 1:
            axis = self.data_axis(name, fn, found, len(shape))
            rest = shape[:axis] + shape[axis + 1 :]
            return jax.vmap(lambda k: jax.random.normal(k, rest), out_axes=axis)(key)
        place = self.run.active.get(DATA_PLATE)  # type: ignore[union-attr]
        eps = jax.random.normal(key, shape)
        return eps if place is None else placing.get().spread(eps, len(batch) + place[0])

    def drawn_series(self, name: str, fn: Any, length: int, batch: tuple[int, ...]) -> Series:
        self.needed_noise(name, fn, None)
        if self.undrawn(fn):
            return self.given_series(stand_in(fn, jnp.zeros(()), (*batch, length)), fn)
        self._refuse_rows(name, fn)
        keys = jax.random.split(self._site_key(name), length)
        return Series(keys, lambda law, key: (_drawn(law, self.batch_of(law), key), None))

    def batch_of(self, fn: Any) -> tuple[int, ...]:
        return jnp.broadcast_shapes(self._plates(), fn.batch_shape)

    def noise_map_of(self, fn: Any) -> Any:
        return noise_map(fn)

    def observe(self, name: str, fn: Any, value: Any) -> Any:
        return numpyro.sample(name, fn, obs=value)

    def is_inside(self, fn: Any, value: Any) -> Any:
        return is_inside(fn, value)

    def has_moving_support(self, fn: Any) -> bool:
        return has_moving_support(fn)

    def factor(self, name: str, value: Any) -> None:
        numpyro.factor(name, jnp.asarray(value))

    def deterministic(self, name: str, value: Any) -> Any:
        return numpyro.deterministic(name, value)

    def plate(self, name: str, size: int, dim: int) -> Any:
        return numpyro.plate(name, size, dim=dim)


def _drawn(fn: Any, batch: tuple[int, ...], key: Any) -> Any:
    """A draw of what is no function of noise."""
    draw = fn.expand(batch).sample(key)
    if isinstance(under(fn), BERNOULLI):
        draw = draw.astype(jnp.result_type(float))  # as on torch: data again, for a verb
    # A mixture's draw has a derivative, but not that of the expectation.
    return draw if fn.has_rsample else jax.lax.stop_gradient(draw)


class Constant(constants.Constant):
    """A numpy array that a program closes over, on JAX."""

    def to_backend(self) -> jax.Array:
        return jnp.asarray(self.view(np.ndarray))

    @staticmethod
    def is_value(x: Any) -> bool:
        return isinstance(x, jax.Array)


def run_program(
    program: Callable,
    params: dict,
    lower: Lowering,
    inputs: Mapping[str, Any],
    batch_size: int | None,
    particles: tuple[int, int] | None,
    initialise: Callable | None = None,
) -> tuple[Run, dict[str, Site]]:
    """Runs a program under NumPyro's trace and turns the trace into sites."""
    run = Run(lower, params, batch_size, initialise, particles)
    lower.run, lower.held = run, held_inputs(inputs)
    with numpyro_turn, numpyro.validation_enabled(False):
        known = constants.constants_of(program, Constant)
        with numpyro.handlers.trace() as trace, running(run), known:
            program(**inputs)
        sites = {}
        for name, node in trace.items():
            if node["type"] in ("sample", "deterministic"):
                sites[name] = as_site(name, node, run, broadcast_plates, _log_prob)
    return run, sites


def probe_program(
    program: Callable, params: dict, values: Mapping[str, Any], inputs: Mapping[str, Any], key: Any,
    batch_size: int | None, initialise: Callable | None,
) -> tuple[Run, dict[str, Site]]:  # fmt: skip
    """One abstract run for what it shows: refuses constants outside their domains, and numpy."""
    kept: list = []

    def make(*args: Any) -> Any:
        with jax.ensure_compile_time_eval():  # numbers, which outlive the trace
            return initialise(*args)  # type: ignore[misc]

    def go(values: Any, key: Any) -> None:
        lower = Lowering(values, key, None)
        lower.checks = True
        own = make if initialise else None
        kept.append(run_program(program, params, lower, inputs, batch_size, None, own))

    with numpy_in_words():
        jax.eval_shape(go, dict(values), key)
    return kept[0]


def read_arguments(
    program: Callable, params: Mapping, *, values: Mapping[str, Any], inputs: Mapping[str, Any],
    key: Any, batch_size: int | None,
) -> tuple[dict[str, Any], Callable, dict[str, Any]]:  # fmt: skip
    """One run, operation by operation, so that a chain of a thousand steps compiles those of one:
    (declarations by site, what reads an argument as numpy, values)."""
    lowering = Lowering(dict(values), key, None)
    run, _ = run_program(program, dict(params), lowering, inputs, batch_size, None)

    def read(x: Any) -> np.ndarray | None:
        return np.asarray(x) if isinstance(x, jax.Array) else domains.constant(x)

    return declarations(run), read, run.values


def _bernoulli_logits(value: Any, logits: Any) -> Any:
    return value * logits - jnp.maximum(logits, 0) - jnp.log1p(jnp.exp(-jnp.abs(logits)))


def _normal(value: Any, loc: Any, scale: Any) -> Any:
    return numpyro_dist.Normal(loc, scale, validate_args=False).log_prob(value)


_ELEMENTWISE: dict[type, tuple[Callable, tuple[str, ...]]] = {
    numpyro_dist.BernoulliLogits: (_bernoulli_logits, ("logits",)),
    numpyro_dist.Normal: (_normal, ("loc", "scale")),
}


def _log_prob(fn: Any, value: Any) -> Any:
    """log p of a value; an image's axes are flattened first, and its Bernoulli is written out.

    XLA's CPU loops over [.., 28, 28, 1] are up to ten times as slow as over [.., 784], and
    NumPyro's order of the Bernoulli's terms costs a seventh more than
    x l - max(l, 0) - log(1 + e^-|l|).
    """
    if type(fn) is numpyro_dist.BernoulliLogits:
        return _bernoulli_logits(value, fn.logits)
    ndim = fn.reinterpreted_batch_ndims if type(fn) is numpyro_dist.Independent else 0
    density, names = _ELEMENTWISE.get(type(fn.base_dist), (None, ())) if ndim else (None, ())
    if density is None:
        return fn.log_prob(value)
    base, shape = fn.base_dist, fn.base_dist.batch_shape

    def flat(x: Any) -> Any:
        whole = jnp.broadcast_to(x, jnp.broadcast_shapes(jnp.shape(x), shape[-ndim:]))
        return whole.reshape((*whole.shape[:-ndim], -1)) if ndim > 1 else whole

    return density(flat(value), *(flat(getattr(base, n)) for n in names)).sum(-1)


def broadcast_plates(log_prob: Any, plates: tuple[int, ...]) -> Any:
    """A log density stretched over the open plates' axes."""
    return jnp.broadcast_to(log_prob, jnp.broadcast_shapes(log_prob.shape, plates))
