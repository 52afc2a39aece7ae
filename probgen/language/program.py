"""The words of a program: sample, factor, deterministic, plate, data_plate, net, submodel.

Each hands its site to Pyro's or NumPyro's own primitive, by the backend's hands of the run that is
going on (`probgen.language.run`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from probgen.errors import (
    BackendError,
    DeclarationError,
    DuplicateSite,
    ShapeError,
    UnknownName,
)
from probgen.language.declared import argument
from probgen.language.dist import Deferred, did_you_mean
from probgen.language.kinds import AnyNet, Width
from probgen.language.masked import refuse_masked
from probgen.language.run import DATA_PLATE, PARTICLES, Run, claim, current, held, on_call
from probgen.language.site_shapes import batch_words, check_value


def sample(name: str, distribution: Deferred, obs: Any = None) -> Any:
    """Declares the random variable `name ~ distribution` and returns its value.

    Args:
        name: one name per site.
        distribution: a `probgen.dist` distribution; inside plates its batch shape is theirs.
        obs: a fixed value, [*plates, *event]; data given to a verb observe a site without this.

    Raises:
        DuplicateSite: the name is taken.
        ShapeError: an axis is neither a plate nor an event (a forgotten `.to_event`), or `obs` has
            other axes than the site.
    """
    run = current("sample")
    full = claim(run, name, "sample")
    if not isinstance(distribution, Deferred):
        raise DeclarationError(
            f"site {full!r}: got {type(distribution).__name__}, expected a distribution of "
            "probgen.dist, such as dist.Normal(0, 1)."
        )
    if distribution.name == "Unit":
        raise DeclarationError(
            f"site {full!r}: got dist.Unit, which is a factor and no random variable, expected "
            f"pg.factor({name!r}, log_factor), so that the density is known to carry one."
        )
    refuse_masked(obs, f"site {full!r}, obs=")
    built = run.lower.build(distribution, full)
    _check_batch_shape(run, full, tuple(built.batch_shape))
    run.sites[full] = {
        "kind": "sample",
        "distribution": distribution,
        "plates": tuple(p for p in run.active if p != PARTICLES),
        "event_shape": tuple(built.event_shape),
        "is_fixed": obs is not None,
        "where": run.seen[full],
    }
    if obs is not None:
        obs = run.lower.ops.asarray(obs)
        _check_observed(run, full, tuple(obs.shape), tuple(built.event_shape))
    run.values[full] = run.lower.sample(full, built, obs)
    return run.values[full]


def _check_observed(
    run: Run, name: str, got: tuple[int, ...], event_shape: tuple[int, ...]
) -> None:
    """The shape of a value of `obs=`; handlers and particles may add axes on the left."""
    plates = run.plate_shape()
    if run.particles is not None or run.is_native:
        got = got[max(0, len(got) - len(plates) - len(event_shape)) :]
    where = {n: size for n, (_, size) in run.active.items() if n != PARTICLES}
    check_value(
        f"site {name!r}, obs=", got, plates, event_shape, where=where,
        is_local=DATA_PLATE in where,
    )  # fmt: skip


def _check_batch_shape(run: Run, name: str, batch_shape: tuple[int, ...]) -> None:
    plates = run.plate_shape()
    inner = batch_shape
    if run.particles is not None and len(batch_shape) == -run.particles[1]:
        inner = batch_shape[1:]
        # Particles stand in front of as many axes of one as plates are deep elsewhere.
        while len(inner) > len(plates) and inner[0] == 1:
            inner = inner[1:]
    if run.is_native and len(inner) > len(plates):
        inner = inner[len(inner) - len(plates) :]
    padded = (1,) * (len(plates) - len(inner)) + inner
    if len(padded) == len(plates) and all(b in (1, p) for b, p in zip(padded, plates, strict=True)):
        return
    extra = max(1, len(inner) - len(plates)) if plates else len(inner)
    is_row = DATA_PLATE in run.active and len(padded) == len(plates)
    raise ShapeError(batch_words(name, batch_shape, plates, extra, is_row))


def factor(name: str, log_value: Any) -> None:
    """Multiplies the density by exp(log_value), nats; [*batch] inside the data plate."""
    run = current("factor")
    full = claim(run, name, "factor")
    shape = tuple(getattr(log_value, "shape", ()))
    _check_batch_shape(run, full, shape)
    run.sites[full] = {
        "kind": "factor",
        "plates": tuple(p for p in run.active if p != PARTICLES),
        "where": run.seen[full],
    }
    run.lower.factor(full, log_value)


def deterministic(name: str, value: Any) -> Any:
    """Gives a value computed by the program a name, so that results show it."""
    run = current("deterministic")
    full = claim(run, name, "deterministic")
    run.sites[full] = {
        "kind": "deterministic",
        "plates": tuple(p for p in run.active if p != PARTICLES),
        "where": run.seen[full],
    }
    run.values[full] = run.lower.deterministic(full, held.get().get(full, value))
    return run.values[full]


@contextlib.contextmanager
def _open(run: Run, full: str, size: int) -> Iterator[None]:
    taken = {dim for dim, _ in run.active.values()}
    dim = next(-i for i in range(1, len(taken) + 2) if -i not in taken)
    if full not in run.plates:
        run.plates[full] = (dim, run.lower.plate(full, size, dim))
    if run.plates[full][0] != dim:
        raise DeclarationError(
            f"plate {full!r} is opened on axis {run.plates[full][0]} and on axis {dim}, expected "
            "one axis per plate; give one of them another name."
        )
    if run.plates[full][1].size != size:
        raise DeclarationError(
            f"plate {full!r} is opened with size {run.plates[full][1].size} and with size {size}, "
            "expected one size per plate; give one of them another name."
        )
    run.active[full] = (dim, size)
    try:
        with run.plates[full][1]:
            yield
    finally:
        del run.active[full]


@contextlib.contextmanager
def plate(name: str, size: int) -> Iterator[None]:
    """`size` conditionally independent repetitions, on the next free axis from the right.

    Inside the data plate the new axis lies left of the data's: values are [size, batch, *event].
    """
    run = current("plate")
    full = run.full_name(name)
    if full in run.active:
        raise DuplicateSite(f"plate {full!r} is opened inside itself; give the inner one a name.")
    if full in run.seen or full == DATA_PLATE:
        raise DuplicateSite(f"plate {full!r} has the name of a site or the data plate; rename it.")
    size = argument(f"plate {full!r}", Width, size=size)
    with _open(run, full, size):
        yield


@contextlib.contextmanager
def data_plate() -> Iterator[None]:
    """The axis of exchangeable data: one entry a datum, its size the batch at hand.

    The scale dataset size / batch size is applied by the algorithm, never by the user. Opening it
    again inside itself changes nothing, so a composed model may contain another.
    """
    run = current("data_plate")
    if DATA_PLATE in run.active:
        yield
        return
    if run.batch_size is None:
        raise DeclarationError(
            "pg.data_plate: the size of the batch is not known; give data, inputs with one row a "
            "datum, or num_samples."
        )
    with _open(run, DATA_PLATE, run.batch_size):
        yield


def net(name: str, declaration: Any) -> Callable:
    """The network `declaration` with the parameters that stand under `name`: a plain function.

    Two calls with one name share parameters. On a model's first run the parameters are drawn by
    `declaration.init` from the shapes that the network is called with.

    Raises:
        UnknownName: the run's parameters have no entry of this name.
    """
    run = current("net")
    full = run.full_name(name)
    declaration = argument(f"pg.net({full!r})", AnyNet, declaration=declaration)
    _check_framework(run, full, declaration)
    known = run.nets.get(full)
    if known is not None and known != declaration:
        raise DeclarationError(
            f"net {full!r}: got {declaration!r}, but the same name stands for {known!r}; expected "
            "one network per name."
        )
    run.nets[full] = declaration

    def call(*inputs: Any, **options: Any) -> Any:
        ask = on_call.get()
        if ask is not None:
            found = ask(full, declaration, _event_shapes(run, declaration, inputs), inputs)
            if found is not None:
                run.params[full] = found
        if full not in run.params:
            if run.initialise is None:
                raise UnknownName(
                    f"net {full!r}: no parameters of that name, expected one of "
                    f"{sorted(run.params)}{did_you_mean(full, run.params)}."
                )
            shapes = _event_shapes(run, declaration, inputs)
            run.params[full] = run.initialise(full, declaration, shapes)
        if run.initialise is not None and hasattr(declaration, "check"):
            declaration.check(run.params[full], *inputs)
        return declaration.apply(run.params[full], *inputs, **options)

    return call


def _check_framework(run: Run, name: str, declaration: Any) -> None:
    """Refuses a module of the other framework."""
    wanted, here = getattr(declaration, "framework", ""), run.lower.framework
    if wanted and wanted != here:
        raise BackendError(
            f"net {name!r}: got a module of {wanted} in a run on {here}, expected "
            f"backend={wanted!r}; leave backend= out, since 'auto' follows the nets, or use a net "
            "of probgen.nets, which runs on both."
        )


def _event_shapes(run: Run, declaration: Any, inputs: tuple) -> list[tuple[int, ...]]:
    """Shapes of one datum's inputs: by the net's `in_ndim` where it has one, else by the plates."""
    ndims = getattr(declaration, "in_ndim", None)
    if isinstance(ndims, int):
        ndims = (ndims,) * len(inputs)
    if ndims is None or len(ndims) != len(inputs):
        return [_event_shape(run, x) for x in inputs]
    return [tuple(x.shape[max(0, len(x.shape) - n) :]) for x, n in zip(inputs, ndims, strict=True)]


def _event_shape(run: Run, x: Any) -> tuple[int, ...]:
    """Shape of one datum's input: the open plates' axes are left away where the array has them."""
    shape, plates = tuple(x.shape), run.plate_shape()
    head = shape[: len(plates)]
    has_them = len(head) == len(plates) and all(
        h in (1, p) for h, p in zip(head, plates, strict=True)
    )
    return shape[len(plates) :] if has_them else shape


def _inner_names(run: Run, name: str, rename: dict[str, str] | None) -> dict[str, str]:
    """Sets the run's names for a part called `name`; with "" the part keeps the names out here."""
    outer = {k: run.full_name(v) for k, v in (rename or {}).items()}
    if name:
        run.prefix, run.rename = f"{run.prefix}{name}/", outer
    else:
        run.rename = {**run.rename, **outer}
    return run.rename


def submodel(name: str, model: Any, rename: dict[str, str] | None = None, **inputs: Any) -> dict:
    """Runs another model as a part of this one and returns its sites' values by their own names.

    Its sites and nets are called `name/site`, or as they are when `name` is "", except those that
    `rename` gives a name out here: a prior of several layers is
    `submodel("prior", model, rename={"x": "z"})["x"]`.
    """
    run = current("submodel")
    before = (run.prefix, run.rename)
    outer = _inner_names(run, name, rename)
    known = set(run.values)
    try:
        model.program(**inputs)
        inner = run.prefix
    finally:
        run.prefix, run.rename = before
    back = {v: k for k, v in outer.items()}
    return {back.get(k, k.removeprefix(inner)): v for k, v in run.values.items() if k not in known}


def subguide(name: str, model: Any, rename: dict[str, str] | None = None, **inputs: Any) -> None:
    """Runs another model's guide as a part of this guide, with the names that `submodel` gives."""
    run = current("subguide")
    before = (run.prefix, run.rename)
    _inner_names(run, name, rename)
    try:
        model.guide(**inputs)
    finally:
        run.prefix, run.rename = before
