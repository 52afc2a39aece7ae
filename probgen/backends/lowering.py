"""What the two lowerings share: how a declaration becomes a library's distribution, and a trace
node a `Site`. No framework here: a backend's own file brings the classes and array functions.
"""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from probgen.backends import written
from probgen.backends.protocol import Site
from probgen.backends.series import SeriesHands
from probgen.errors import (
    AlgorithmError,
    BackendError,
    DataError,
    DeclarationError,
    MissingSeed,
    NotByRow,
    ShapeError,
)
from probgen.language import domains, ops
from probgen.language.dist import Deferred
from probgen.language.noise import NoiseMap
from probgen.language.run import DATA_PLATE, NOT_NORMAL, PARTICLES, Run

# Arguments that shape a distribution and are not parameters of it.
STRUCTURE = frozenset({"dim", "total_count", "event_dim", "num_levels", "low", "high"})


class BaseLowering(SeriesHands):
    """The hands of one run: values that are given, a key or noise for those that are drawn.

    A subclass names its library and defines `argument` (a number or array as the library wants
    it), `draw` (a value from the key, for a distribution that is no function of noise), and
    `bijection` and `written_class` for what its user writes (`probgen.backends.written`).

    Attributes:
        checks: constants among the arguments are held against their domains; for a probe.
        held: arrays among the run's inputs that lie in their domains (`language.model.Inputs`).
    """

    library: ClassVar[str]
    framework: ClassVar[str]
    own: ClassVar[Mapping[str, Any]] = {}
    renamed: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    classes: ClassVar[Any]
    checks: bool = False
    held: tuple[Any, ...] = ()

    def __init__(self, values: Mapping[str, Any], key: Any, noise: Mapping[str, Any] | None):
        self.values, self.key, self.noise = values, key, noise or {}
        self.run: Run | None = None

    def build(self, deferred: Deferred, site: str) -> Any:
        """The library's distribution for a declaration.

        Raises:
            BackendError: the library has none of that name.
            DeclarationError: its arguments do not make one, or a constant lies outside its domain.
        """
        if self.checks:
            domains.check(site, deferred, domains.constant)
        try:
            built = self._of_name(deferred, site)
            for method, args in deferred.calls:
                built = getattr(built, method)(*args)
        except (RuntimeError, ValueError, TypeError) as error:
            raise DeclarationError(
                f"site {site!r}: {deferred!r} cannot be built by {self.library}: {error}"
            ) from error
        # Data are checked once, by `engine.data_support`; a check of values cannot be traced.
        built._validate_args = False
        return built

    def _of_name(self, deferred: Deferred, site: str) -> Any:
        """The declared distribution before any method is called on it."""
        if deferred.name in written.NAMES:
            given = dict(deferred.arguments)
            base = given.get("base", given.get("start"))
            built = None if base is None else self.build(base, site)
            return self.written_class(*written.law_of(deferred, built, self.bijection, site))
        renamed = self.renamed.get(deferred.name, {})
        given = {k: self._given(deferred.name, k, v, site) for k, v in deferred.arguments}
        given = _canonical(deferred.name, given)
        return self._class(deferred.name, given)(**{renamed.get(k, k): v for k, v in given.items()})

    def _given(self, family: str, name: str, value: Any, site: str) -> Any:
        """An argument as the library wants it; a computed one is NaN outside its domain."""
        if isinstance(value, Deferred):
            return self.build(value, site)
        out = self.argument(name, value)
        is_computed = domains.constant(value) is None and hasattr(value, "shape")
        if not is_computed or any(value is known for known in self.held):
            return out
        return domains.poison(family, name, out)

    def _class(self, name: str, given: Mapping[str, Any]) -> Any:
        form = "Logits" if "logits" in given else "Probs"
        found = self.own.get(name + form, self.own.get(name, getattr(self.classes, name, None)))
        if found is None:
            other = {"Pyro": ("NumPyro", "jax"), "NumPyro": ("Pyro", "torch")}[self.library]
            raise BackendError(
                f"dist.{name}: {self.library} has no such distribution, only {other[0]} does; run "
                f'this model with backend="{other[1]}", or declare it with a distribution that '
                "both have."
            )
        return found

    def argument(self, name: str, value: Any) -> Any:
        """An argument as the library wants it."""
        raise NotImplementedError  # abstract: both lowerings define it

    written_class: ClassVar[Any]

    def bijection(self, support: Any, event_shape: tuple[int, ...]) -> tuple:
        """The library's map onto a support: (forward, inverse_and_log_det, event shape)."""
        raise NotImplementedError  # abstract: both lowerings define it

    def undrawn(self, fn: Any) -> bool:
        """Whether a probe must put a value in the place of a draw that there is not.

        Raises:
            AlgorithmError: there is no draw, and this run is no probe.
        """
        if written.has_draw(fn):
            return False
        if not self.checks:
            raise AlgorithmError(written.NO_DRAW.format(name=type(fn).__name__))
        return True

    def needed_noise(self, name: str, fn: Any, noise_map: NoiseMap | None) -> Any:
        """Noise that was given for a site, or None when a key must draw it.

        Raises:
            MissingSeed: there is neither noise nor a key.
            AlgorithmError: noise for a site that is no function of it.
        """
        eps = self.noise.get(name)
        if self.key is None and eps is None:
            raise MissingSeed(
                f"site {name!r} must be drawn, and there is no seed; give a value for it or a seed."
            )
        if noise_map is None and eps is not None:
            raise AlgorithmError(NOT_NORMAL.format(name=name, kind=type(fn).__name__))
        return eps

    def data_axis(self, name: str, fn: Any, noise_map: NoiseMap | None, ndim: int) -> int:
        """Where the data lie among the `ndim` axes of a draw's noise, for row keys.

        Raises:
            NotByRow: the site is no function of noise, or stands outside the data plate.
        """
        plate = self.run.active.get(DATA_PLATE)  # type: ignore[union-attr]
        if noise_map is None or plate is None:
            raise NotByRow(
                f"site {name!r}: got one key a datum, expected a local site that is a function of "
                f"normal noise, not {type(fn).__name__}; take the data one by one."
            )
        return ndim - len(noise_map.shape) + plate[0]

    def _plates(self) -> tuple[int, ...]:
        return axis_sizes(dict(self.run.active.values()))  # type: ignore[union-attr]


def _canonical(family: str, given: dict[str, Any]) -> dict[str, Any]:
    """Weights, and what is relaxed, as logits, alike for both libraries; a covariance as its
    Cholesky factor, which is NaN, and no exception, where there is none."""
    probs = given.get("probs")
    if probs is not None and domains.domain(family, "probs") is domains.WEIGHTS:
        rest = {k: v for k, v in given.items() if k != "probs"}
        if hasattr(probs, "shape") and "logits" not in given:
            is_zero = probs == 0  # the derivative of a weight of zero is zero, not NaN
            logs = ops.log(ops.where(is_zero, ops.ones_like(probs), probs))
            return {**rest, "logits": ops.where(is_zero, float("-inf"), logs)}
    if family == "RelaxedBernoulli" and probs is not None and "logits" not in given:
        log, log1p = (ops.log, ops.log1p) if hasattr(probs, "shape") else (np.log, np.log1p)
        return {"temperature": given["temperature"], "logits": log(probs) - log1p(-probs)}
    cov, precision = given.get("covariance_matrix"), given.get("precision_matrix")
    if (cov is None) == (precision is None) or "scale_tril" in given:
        return given
    rest = {k: v for k, v in given.items() if not k.endswith("_matrix")}
    if len((precision if cov is None else cov).shape) < 2:  # type: ignore[union-attr]
        return given  # the library's own words say it better
    if cov is not None:
        return {**rest, "scale_tril": ops.cholesky(cov)}
    # P = L L^T of the reversed matrix gives the inverse factor without inverting P.
    matrix: Any = precision
    upper = ops.flip(ops.cholesky(ops.flip(matrix, (-2, -1))), (-2, -1))
    identity = 0.0 * matrix + ops.eye_like(matrix.shape[-1], matrix)
    return {**rest, "scale_tril": ops.solve_triangular(upper.swapaxes(-1, -2), identity)}


class NumpyMet(TypeError):
    """A value of the run was asked for as a numpy array."""


_OF_NUMPY = ("TracerArrayConversionError", "TracerIntegerConversionError", "NumpyMet")


@contextlib.contextmanager
def numpy_in_words() -> Iterator[None]:
    """What numpy says of a value of the run, in words that are the same on both backends.

    A value belongs to JAX or torch while a program runs: numpy would need its number, which a
    compiled program has not, and which would stand in it as a constant for good.

    Raises:
        DeclarationError: names the line of the program.
    """
    try:
        yield
    except Exception as error:
        is_mixed = isinstance(error, TypeError) and any(
            words in str(error) for words in ("'numpy.ndarray' and", "NumPy arrays")
        )
        frames = traceback.extract_tb(error.__traceback__)
        by_numpy = isinstance(error, TypeError) and "fromnumeric" in frames[-1].filename
        if type(error).__name__ not in _OF_NUMPY and not (is_mixed or by_numpy):
            raise
        own = [f for f in frames if not any(part in f.filename for part in _LIBRARIES)]
        where = f"{os.path.basename(own[-1].filename)}:{own[-1].lineno}: " if own else ""
        line = f" ({own[-1].line})" if own and own[-1].line else ""
        raise DeclarationError(
            f"{where}got a numpy array or function together with a value of the program{line}, "
            "expected arrays of one kind; wrap the array, pg.ops.asarray(table)[k], and take "
            "functions from pg.ops in place of numpy's: numpy cannot follow a gradient, and a "
            "compiled program would keep the number of its first run."
        ) from error


_LIBRARIES = ("site-packages", *(os.path.join("probgen", d) for d in ("backends", "language")))


def axis_sizes(sizes: Mapping[int, int]) -> tuple[int, ...]:
    """{axis from the right: size} as a shape, with 1 where no plate lies."""
    depth = max((-axis for axis in sizes), default=0)
    return tuple(sizes.get(-i, 1) for i in range(depth, 0, -1))


def per_datum(
    name: str, value: Any, plates: Mapping[str, tuple[int, int]], broadcast: Callable
) -> Any:
    """A site's log density (or log Jacobian), [*plates], with its inner plates summed.

    Args:
        name: the site's.
        value: the log density.
        plates: name -> (axis from the right, size) of those that the site stands in.
        broadcast: see `as_site`.

    Raises:
        ShapeError: an axis is left over that is no plate's.
    """
    keep = {dim for plate, (dim, _) in plates.items() if plate in (PARTICLES, DATA_PLATE)}
    value = broadcast(value, axis_sizes(dict(plates.values())))
    inner = tuple(axis for axis in range(-value.ndim, 0) if axis not in keep)
    if inner:
        value = value.sum(inner)
    if value.ndim != len(keep):
        raise ShapeError(
            f"site {name!r}: got a log-probability of shape {tuple(value.shape)}, expected "
            f"{len(keep)} axes, of the data and the particles; check its plates and its to_event."
        )
    return value


def held_integers(x: np.ndarray, kind: type, library: str) -> np.ndarray:
    """64-bit integers as those that the device holds.

    Raises:
        DataError: one of them is too large, and would become another number.
    """
    room = np.iinfo(kind)
    if x.size and (x.max() > room.max or x.min() < room.min):
        worst = int(x.max() if x.max() > room.max else x.min())
        raise DataError(
            f"got the integer {worst}, expected integers in {room.min} ... {room.max}, which is "
            f"what {library} holds; give floats (.astype('float32')), which round it to seven "
            "digits, smaller units" + (', or backend="torch".' if library == "JAX" else ".")
        )
    return x.astype(kind)


def held_inputs(inputs: Mapping[str, Any]) -> tuple[Any, ...]:
    """The arrays among a run's inputs that need no look at their domains."""
    return tuple(inputs[n] for n in sorted(getattr(inputs, "held", ())) if n in inputs)


def declarations(run: Run) -> dict[str, Deferred]:
    """Site -> its declaration, of a run; a native program's sites have none."""
    found = {n: s.get("distribution") for n, s in run.sites.items()}
    return {n: d for n, d in found.items() if isinstance(d, Deferred)}


def plain_log_prob(fn: Any, value: Any) -> Any:
    """The library's own."""
    return fn.log_prob(value)


def as_site(
    name: str,
    node: Mapping[str, Any],
    run: Run,
    broadcast: Callable,
    log_prob_of: Callable = plain_log_prob,
) -> Site:
    """A node of Pyro's or NumPyro's trace as a site: inner plates summed, data and particles kept.

    `broadcast(log_prob, plates)` stretches a log-probability over the open plates' axes.

    Raises:
        ShapeError: an axis is left over that is no plate's.
    """
    kind = run.sites[name]["kind"]
    frames = node["cond_indep_stack"]
    is_local = any(f.name == DATA_PLATE for f in frames)
    if kind == "deterministic":
        return Site(node["value"], None, is_local, None, kind)
    plates = {f.name: (f.dim, f.size) for f in frames}
    log_prob = per_datum(name, log_prob_of(node["fn"], node["value"]), plates, broadcast)
    return Site(node["value"], log_prob, is_local, None if kind == "factor" else node["fn"], kind)
