"""A declaration is put on a backend.

`bind` runs the program and the guide once on one datum. That run finds the sites, draws parameters
for nets that have none, and refuses what does not fit before anything is computed.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from probgen.backends.protocol import Backend
from probgen.engine.auto_guide import with_program
from probgen.engine.bound import Bound
from probgen.engine.guide_checks import check_guide, warn_left_out
from probgen.engine.probing import Probe, Seen
from probgen.engine.structure import Structure, structure_of
from probgen.language.model import Model, call_arguments
from probgen.language.seeds import named
from probgen.nets.buffers import has_upkeep
from probgen.trees import tree_map


def bind(
    model: Model,
    backend: Backend,
    *,
    data: Mapping[str, Any] | None = None,
    constants: Mapping[str, Any] | None = None,
    params: Mapping | None = None,
    seed: int = 0,
    whole: bool = False,
    is_once: bool = False,
    is_blank: bool = False,
    **fields: Any,
) -> tuple[Bound, dict]:
    """Binds a model to a backend by running it once on one datum, or on all of them.

    Args:
        data: a few rows of the data and per-datum inputs, numpy; may be empty.
        fields: of `Bound`; with `whole`, `num_data` is the size of the data plate where nothing
            else tells it.
        whole: `data` are all the data and are taken as one batch, so that a site outside the data
            plate, or in further plates, may be observed; the bound model's `num_rows` says how
            many there are.
        is_once: `data` have one row, which is the one value of each site of a program without a
            data plate, [1, *plates, *event].
        is_blank: the values of data and constants are made up, for their shapes alone.
        constants: inputs shared by all data.
        params: parameters that exist already; nets without any are initialised from `seed`.

    Returns:
        The bound model, and its parameters on the backend.

    Raises:
        UnknownName: data under a name that is neither a site nor an input.
        ShapeError: data, a value of `obs=` or a guide's latent that does not stand where its site
            does.
        DeclarationError: an input, of which all values are here, that lies outside the domain of a
            distribution's argument.
        DataError, SupportError, DuplicateSite: see `probgen.engine.data_support`,
            `probgen.language.program`.
    """
    data = {k: np.asarray(v) for k, v in (data or {}).items()}
    constants = dict(constants or {})
    fixed = {
        k: backend.asarray(v) if isinstance(v, np.ndarray | list) else v
        for k, v in constants.items()
    }
    everything = {**model.fitted_params(), **(params or {})}
    started = tree_map(backend.asarray, everything)
    key = backend.key(seed)

    def initialise(name: str, declaration: Any, shapes: Any) -> Any:
        return declaration.init(named(seed, name), *shapes)

    looked_at = frozenset() if is_blank else frozenset({*fixed, *(data if whole else ())})
    probe = Probe(model, backend, started, fixed, key, initialise, looked_at)
    if is_once:
        seen = probe.one_value(data)
    else:
        seen = probe.all_rows(data, fields.get("num_data")) if whole else probe.one_row(data)
    guide_structure, held = None, seen.held
    model = with_program(model, seen.structure, seen.observed, fields.get("num_data"))
    if model.guide is not None:
        guide_structure, more = _probe_guide(probe, model, seen)
        held |= more
        check_guide(model.name, seen.structure, guide_structure, seen.observed)
    final = tree_map(backend.asarray, probe.params)
    structure = seen.structure
    nets = {**structure.nets, **(guide_structure.nets if guide_structure else {})}
    upkeep = {n: net for n, net in nets.items() if has_upkeep(net, final[n])}
    if whole:
        fields["num_rows"] = seen.num_rows
    bound = Bound(
        model, backend, structure, guide_structure, seen.observed, fixed, held=held, upkeep=upkeep,
        seed=seed, names=tuple(sorted(final)), is_once=is_once, **fields,
    )  # fmt: skip
    warn_left_out(model.name, bound.left_out)
    steps = model.by_steps() if bound.is_long else None
    if steps is not None:
        # Most who bind a long chain have no use for it, and a bind runs the program.
        short = functools.partial(
            bind, steps, backend, data=data, constants=constants, params=everything, seed=seed,
            whole=whole, is_once=is_once, is_blank=is_blank, **fields,
        )  # fmt: skip
        bound = dataclasses.replace(bound, make_short=functools.cache(lambda: short()[0]))
    return bound, final


def _probe_guide(probe: Probe, model: Model, seen: Seen) -> tuple[Structure, frozenset[str]]:
    """One run of the guide; sites that it reads and no data were given for are zeros."""
    b, small = probe.backend, model.sketch()
    guide: Any = small.model.guide
    blank = functools.cache(lambda shape: b.asarray(np.zeros(shape, np.float32)))
    zeros = {
        n: blank(tuple(s.value.shape))  # one for all steps of a chain
        for n, s in seen.sites.items()
        if s.kind == "sample" and n not in seen.rows and hasattr(s.value, "shape")
    }
    known = {**probe.constants, **zeros, **seen.rows}
    inputs = call_arguments(guide, known, f"guide of {model.name!r}")
    run, sites = b.probe(
        guide, probe.params, values={}, inputs=inputs, key=probe.key, batch_size=seen.num_rows,
        initialise=probe.initialise,
    )  # fmt: skip
    return structure_of(b, run, sites, small.sites), probe.held(run, inputs)
