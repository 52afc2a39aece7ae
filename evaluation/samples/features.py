"""What samples are compared in: functions from data to vectors, each with a name.

A distance between samples is a distance between features, so the name goes into every result:
"FD[pca50]" and "FD[digit-net]" are different numbers. A feature function is any callable on numpy
arrays, a network of torch, flax or equinox, a declared net with its parameters, or a name:

    "raw"         the data themselves
    "pca50"       50 principal components of the real set (any number)
    "digit-net"   the classifier of the embedded digits of that size

`features=` of every measure is such a function and is applied to real and fake data alike. Data go
through in batches, so memory does not grow with them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from probgen import backends, nets
from probgen.errors import AlgorithmError, DataError, ShapeError, UnknownName
from probgen.evaluation.samples.checks import as_matrix, as_pair, as_rows
from probgen.language.declared import checked, declaration
from probgen.language.kinds import Count, Text
from probgen.nets.adapters import EquinoxNet, FlaxNet, TorchNet
from probgen.trees import tree_map

BATCH = 256
PCA_NAME = re.compile(r"pca(\d+)")


@declaration(eq=False)
class Features:
    """A named feature function; calling it gives [n, d] float64.

    Attributes:
        name: stands in brackets in every result.
        function: [batch, *event] numpy -> [batch, ...] numpy or an array that numpy can read.
        batch_size: rows at a time.
    """

    name: Text
    function: Callable[[np.ndarray], Any]
    batch_size: Count = BATCH

    def __call__(self, x: Any) -> np.ndarray:
        """Features of data [n, *event] (or an `Images`), axes beyond the first flattened.

        Raises:
            DataError: no data, or data or features that are not finite numbers.
            ShapeError: the function does not give one row a datum.
        """
        where = f"features {self.name!r}"
        rows = as_rows(x, where)
        if len(rows) == 0:
            raise DataError(f"{where}: got no data, expected at least one datum.")
        parts = []
        for start in range(0, len(rows), self.batch_size):
            batch = rows[start : start + self.batch_size]
            out = _numpy(self.function(batch), where)
            if out.ndim == 0 or len(out) != len(batch):
                raise ShapeError(
                    f"{where}: got an output of shape {out.shape} for {len(batch)} data, expected "
                    "one row a datum, [n, ...]; the function must keep the first axis."
                )
            parts.append(as_matrix(out, f"{where}, output", least=1))
        return np.concatenate(parts)


def raw(x: np.ndarray) -> np.ndarray:
    """The data themselves."""
    return x


def _numpy(value: Any, where: str) -> np.ndarray:
    try:
        return np.asarray(value)
    except (RuntimeError, TypeError, ValueError) as error:
        raise DataError(
            f"{where}: got {type(value).__name__}, which numpy cannot read ({error}), expected an "
            "array; return numpy (x.detach().cpu().numpy()), or give the network itself."
        ) from error


@checked
def as_features(
    fn: Any,
    *,
    name: Text | None = None,
    params: Any = None,
    backend: str | backends.Backend = "auto",
    device: str = "auto",
    batch_size: Count = BATCH,
) -> Features:
    """Anything that maps data to vectors as `Features`.

    Args:
        fn: None or "raw" (the data themselves); "digit-net"; a `Features`; a callable on numpy
            arrays (a function of jax.numpy is one); a network: `torch.nn.Module` (in eval mode),
            `equinox.Module` (a function of one datum), `flax.linen.Module` or a declared net of
            `probgen.nets`.
        name: for results; None takes the function's or the class's own.
        params: of a declared net or a flax module: nested dict, such as `fitted.params["encoder"]`;
            flax's own {"params": ...} is understood. A torch or equinox module has its own.
        backend: for a declared net; an adapted one runs on its own framework.
        device: for networks.
        batch_size: rows at a time.

    Raises:
        AlgorithmError: not callable, a net without parameters, or in training mode.
        UnknownName: a name that is none of the built-in ones; or "pca50", whose components are
            those of a real set, outside a measure.
    """
    if isinstance(fn, str) and fn == "digit-net":
        return Features(name or fn, _digit_net, batch_size)
    if isinstance(fn, str) and fn != "raw":
        pca = PCA_NAME.fullmatch(fn)
        cure = (
            f"its components are those of a data set, so say pca_features(train, {pca[1]})"
            if pca
            else "a function, a network or a Features is applied; to name features computed "
            f"beforehand, say features=as_features(None, name={fn!r})"
        )
        raise UnknownName(
            f"as_features: got {fn!r}, expected 'raw', 'digit-net' or, in a measure, 'pca50' (any "
            f"number of components); {cure}."
        )
    if fn is None or isinstance(fn, str):
        return Features(name or "raw", raw, batch_size)
    if isinstance(fn, Features):
        return fn if name is None else dataclasses.replace(fn, name=name)
    net = _as_net(fn)
    if net is not None:
        title = name or type(getattr(net, "module", net)).__name__
        return Features(title, _apply(net, params, title, backend, device), batch_size)
    if not callable(fn):
        raise AlgorithmError(
            f"as_features: got {type(fn).__name__}, expected a callable on numpy arrays, a network "
            "(with params= where it holds none), a Features, or None for the data themselves."
        )
    if params is not None:
        raise AlgorithmError(
            f"as_features: got params for {type(fn).__name__}, which is no network, expected a "
            "function of the data alone; close over them: lambda x: fn(params, x)."
        )
    own = getattr(fn, "name", None) or getattr(fn, "__name__", type(fn).__name__)
    return Features(name or str(own), fn, batch_size)


def _digit_net(x: np.ndarray) -> np.ndarray:
    """Features of the classifier of the embedded digits that have this size."""
    from probgen.evaluation.samples.digit_classifier import digit_classifier

    size = int(np.prod(x.shape[1:]))
    return digit_classifier("digits" if size == 64 else "mnist5k")(x)


def features_for(features: Any, real: Any) -> Features:
    """What `features=` of a measure means: `as_features`, and "pca50" fitted on the real set."""
    pca = PCA_NAME.fullmatch(features) if isinstance(features, str) else None
    return pca_features(real, int(pca[1])) if pca else as_features(features)


class Pair(NamedTuple):
    """Two sets in a space of features.

    Attributes:
        x, y: [n, d] of the real set, [m, d] of the fake one.
        name: of the features.
        notes: what a reader of any measure of these two has to know, in words.
    """

    x: np.ndarray
    y: np.ndarray
    name: str
    notes: tuple[str, ...]


def featured(real: Any, fake: Any, features: Any, where: str, *, least: int = 2) -> Pair:
    """Features of real and fake data, by the same function.

    Raises:
        ShapeError, DataError: as `as_pair`, for the data and for their features.
        AlgorithmError, UnknownName: as `as_features`.
    """
    x, y = as_pair(real, fake, where, least=least)  # before a network sees them
    named = features_for(features, real)
    if named.function is not raw:
        x, y = as_pair(named(real), named(fake), where, least=least)
    notes: tuple[str, ...] = ()
    if is_same_data(x, y):
        notes = (
            "both sets are the same data, not independent draws: neither the error nor a p-value "
            "holds",
        )
    return Pair(x, y, named.name, notes)


def is_same_data(x: np.ndarray, y: np.ndarray) -> bool:
    """Whether the rows of y [m, d] are those of x [n, d], in any order."""
    if x.shape != y.shape or not np.array_equal(x.max(0), y.max(0)):
        return False
    return sorted(row.tobytes() for row in x) == sorted(row.tobytes() for row in y)


def _as_net(fn: Any) -> Any:
    """A declared net as it is, a framework's module adapted, anything else None."""
    if isinstance(fn, nets.Net) and not _is_module_of(fn, "flax"):
        return fn
    if _is_module_of(fn, "torch"):
        if getattr(fn, "training", False):
            raise AlgorithmError(
                f"as_features: got {type(fn).__name__} in training mode, expected eval mode, where "
                "dropout and batch statistics do not change the features; call .eval() first."
            )
        return nets.from_torch(fn)
    if _is_module_of(fn, "equinox"):
        return _PerDatum(fn)
    return nets.from_flax(fn) if _is_module_of(fn, "flax") else None


def _is_module_of(fn: Any, framework: str) -> bool:
    """Whether it is an instance of that framework's `Module`, told without importing it."""
    return any(
        base.__name__ == "Module" and base.__module__.partition(".")[0] == framework
        for base in type(fn).__mro__
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _PerDatum:
    """An equinox module, whose event axes are known when the first data come."""

    module: Any

    def init(self, key: Any, *shapes: tuple[int, ...]) -> Any:
        return nets.from_equinox(self.module, in_ndim=0).init(key, *shapes)

    def apply(self, params: Any, x: Any) -> Any:
        return nets.from_equinox(self.module, in_ndim=x.ndim - 1).apply(params, x)


_HOME = {TorchNet: "torch", FlaxNet: "jax", EquinoxNet: "jax", _PerDatum: "jax"}


def _apply(net: Any, params: Any, name: str, backend: Any, device: str) -> Callable:
    """numpy -> numpy through a net."""
    if params is None:
        if isinstance(net, FlaxNet) or type(net) not in _HOME:
            raise AlgorithmError(
                f"as_features: got the net {name!r} without parameters, expected params=, such as "
                "fitted.params['encoder']; untrained features compare nothing."
            )
        params = net.init(np.random.default_rng(0))
    if isinstance(net, FlaxNet) and set(params) == {"params"}:
        params = params["params"]
    home = _HOME.get(type(net))
    b = backends.load(home, device) if home else backends.resolve(backend, device)
    placed = tree_map(b.asarray, params)
    # A few calls do not earn a long compilation back.
    compiled = b.compile(lambda tree, x: net.apply(tree, x), num_calls=1)

    def run(x: np.ndarray) -> np.ndarray:
        out = compiled(placed, b.asarray(np.asarray(x, np.float32)))
        if isinstance(out, dict):
            raise AlgorithmError(
                f"features {name!r}: got a net with heads {sorted(out)}, expected one array; give "
                "a function that picks one, or a net without heads."
            )
        return b.to_numpy(out)

    return run


@checked
def pca_features(reference: Any, num_components: Count = 50) -> Features:
    """Principal components fitted on `reference`, usually the real data: "pca50".

    Scores are not whitened: distances stay in the data's units.

    Args:
        reference: [n, *event].
        num_components: at most the smaller of n and the numbers of a datum.

    Raises:
        AlgorithmError: more components than there are.
    """
    from sklearn.decomposition import PCA

    flat = as_matrix(reference, "pca_features")
    if num_components > min(flat.shape):
        raise AlgorithmError(
            f"pca_features: got num_components={num_components} for {flat.shape[0]} data of "
            f"{flat.shape[1]} numbers, expected at most {min(flat.shape)}."
        )
    pca = PCA(num_components, svd_solver="full").fit(flat)
    size = flat.shape[1]

    def project(x: np.ndarray) -> np.ndarray:
        rows = x.reshape(len(x), -1).astype(np.float64)
        if rows.shape[1] != size:
            raise ShapeError(
                f"features 'pca{num_components}': got data of {rows.shape[1]} numbers, expected "
                f"{size} as in the reference they were fitted on."
            )
        return pca.transform(rows)

    return Features(f"pca{num_components}", project, 4096)
