"""How strongly a datum pulls at the parameters of a fitted model.

    f_l(x) = |d ELBO(x) / d theta_l|^2                one number for each parameter array l

    norm       sum_l f_l                              nats^2 per unit of the parameters squared
    fisher     sum_l f_l / F_l,   F_l = mean of f_l over reference data
    density    -sum_l log N(log f_l; m_l, s_l^2),     m_l, s_l over reference data

F_l is the trace of the layer's Fisher information, so that "fisher" is g' F^-1 g with F taken as
diagonal, and constant within a layer (up to the number of parameters in it). Larger is stranger.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from probgen.engine.bound import Bound
from probgen.engine.measure import EvaluationContext, Function, Values, changed_settings
from probgen.errors import AlgorithmError, DataError, NonFiniteError
from probgen.inference.ood.moments import check_guide
from probgen.inference.ood.reference import ReferenceData, over, set_reference
from probgen.language.declared import declaration, require
from probgen.language.kinds import Many
from probgen.trees import tree_items

Array = Any
Nets = Literal["all", "model", "guide"]
Method = Literal["norm", "fisher", "density"]
FEWEST = 10  # reference data that a scale is made of


@declaration
class LayerNorms:
    """As a measure: "layers" [n, L], squared norms of the ELBO's gradient.

    The gradient of one datum is that of its ELBO by K draws, log p(x, z) - log q(z | x) with z a
    function of noise, so of expectation the ELBO's. Data are taken `data_at_once` together (one
    gradient each is held) by `vmap`.

    Args:
        num_particles: K.
        nets: "guide" (those that only the guide uses), "model" (those of the program) or "all".
        data_at_once: for memory.
    """

    num_particles: Many = 1
    nets: Nets = "all"
    data_at_once: Many = 16

    unit = "nats^2"
    larger_is_stranger = True

    @property
    def name(self) -> str:
        return f"LayerNorms({self.num_particles})"

    def bind_measure(self, context: EvaluationContext) -> Function:
        """(rows, ids) -> {"layers": [n, L]}, in the order of `layer_names`."""
        check_guide(context.bound, self.name)
        return context.device(self.device_function(context.bound), self.name)

    def device_function(self, bound: Bound) -> Callable:
        """(params, batch, key) -> {"layers": [batch, L]}."""
        b, ops, at_once = bound.backend, bound.backend.ops, self.data_at_once
        shapes = _noise_shapes(bound, self.name)

        def one(chosen: Mapping, rest: Mapping, row: Mapping, eps: Mapping) -> Array:
            grads = b.grad(_elbo_of_one(bound))(dict(chosen), dict(rest), row, eps)
            leaves = [leaf for _, leaf in tree_items(grads)]
            return ops.stack([ops.sum(ops.square(g)) for g in leaves], axis=0)

        each = b.vmap(one, in_axes=(None, None, 0, 0))

        def measure(params: Mapping, batch: Mapping, key: Any) -> dict[str, Array]:
            chosen, rest = split_nets(bound, params, self.nets)
            size: int = bound.batch_size(batch)  # type: ignore[assignment]
            keys = b.split(key, len(shapes))
            eps = {
                n: b.normal(keys[i], (size, self.num_particles, *shape))
                for i, (n, shape) in enumerate(shapes.items())
            }
            blocks, left = size // at_once, size % at_once
            parts = []
            if blocks:
                xs = b.tree_map(
                    lambda v: ops.reshape(v[: -left or None], (blocks, at_once, *v.shape[1:])),
                    (dict(batch), eps),
                )
                _, norms = b.scan(lambda carry, x: (carry, each(chosen, rest, *x)), 0, xs)
                parts.append(ops.reshape(norms, (blocks * at_once, norms.shape[-1])))
            if left:
                rows, noise = b.tree_map(lambda v: v[size - left :], (dict(batch), eps))
                parts.append(each(chosen, rest, rows, noise))
            return {"layers": parts[0] if len(parts) == 1 else ops.concatenate(parts, axis=0)}

        return measure


def _elbo_of_one(bound: Bound) -> Callable:
    """(chosen nets, other nets, row, noise [K, ...] by latent) -> ELBO of the row, nats."""
    b, ops, guide = bound.backend, bound.backend.ops, bound.model.guide

    def elbo(chosen: Mapping, rest: Mapping, row: Mapping, eps: Mapping) -> Array:
        params = {**rest, **chosen}
        num = next(iter(eps.values())).shape[0]
        # K draws of one datum are K equal data with a draw each.
        batch = {n: ops.broadcast_to(v[None], (num, *v.shape)) for n, v in row.items()}
        drawn = b.trace(
            guide,  # type: ignore[arg-type]
            params,
            inputs=bound.inputs(guide, batch, f"guide of {bound.model.name!r}"),  # type: ignore
            batch_size=num,
            noise=eps,
        )
        latents = {n: s.value for n, s in drawn.items() if s.kind == "sample"}
        sites = bound.trace(params, batch, latents, batch_size=num)
        log_p = sum(s.log_prob for s in sites.values() if s.log_prob is not None)
        log_q = sum(s.log_prob for s in drawn.values() if s.log_prob is not None)
        return ops.mean(log_p - log_q)

    return elbo


def _noise_shapes(bound: Bound, who: str) -> dict[str, tuple[int, ...]]:
    """Shape of one datum's noise for each latent of the guide.

    Raises:
        AlgorithmError: latents inside further plates.
    """
    sites = {n: s for n, s in bound.guide_structure.sites.items() if s.kind == "sample"}  # type: ignore
    nested = [n for n, s in sites.items() if len(s.plates) != 1]
    if nested:
        raise AlgorithmError(
            f"{who}: the latents {nested} of {bound.model.name!r} lie in plates beside that of the "
            "data, expected none; make those axes events with .expand([...]).to_event(n)."
        )
    return {n: s.event_shape if s.noise_shape is None else s.noise_shape for n, s in sites.items()}


def split_nets(bound: Bound, params: Mapping, nets: str) -> tuple[dict, dict]:
    """(nets that are differentiated, all others); frozen nets are never among the first.

    Raises:
        AlgorithmError: there are none.
    """
    trainable, _ = bound.split_params(params)
    model_nets = set(bound.structure.nets)
    chosen = {
        n: v
        for n, v in trainable.items()
        if nets == "all" or (n in model_nets) == (nets == "model")
    }
    if not any(True for _ in tree_items(chosen)):
        raise AlgorithmError(
            f"GradientNorm: the model {bound.model.name!r} has no trainable parameters of "
            f"nets={nets!r}, expected some; its nets are {sorted(params)}."
        )
    return chosen, {n: v for n, v in params.items() if n not in chosen}


def layer_names(bound: Bound, params: Mapping, nets: str = "all") -> list[str]:
    """Names of the parameter arrays in the order of "layers", such as "encoder.out.weight"."""
    return [".".join(path) for path, _ in tree_items(split_nets(bound, params, nets)[0])]


@declaration
class GradientNorm:
    """Squared gradient norms of a datum's ELBO, by parameter array, scaled by those of a reference.

    Larger is stranger. The unit is that of the method: squared nats per squared unit of the
    parameters for "norm" (shown as nats^2), none for "fisher" (1), nats for "density". "log_layers"
    [n, L], log f_l, is a diagnostic; `layer_names` names its columns. With nets="guide" and
    method="norm" it is likelihood regret in one step: a step of size h along the gradient raises
    the ELBO by h |grad|^2 to first order in h, and only the guide's nets move.

    Assumes that the model is near an optimum, where the gradients of its own data are small and
    those of foreign data large. Fails for a model that is not, or that has learned its training
    data by heart, if these are the reference; the noise of few draws is in the score (use more
    particles). Layer-wise norms, unlike a density, do not change under an invertible re-coding of
    the data (arXiv:2403.01485); where the posterior has collapsed the guide's say nothing.

    Args:
        reference: data of the training distribution; None for method="norm".
        method: "norm", "fisher" or "density".
        num_particles: draws of z per datum.
        nets: "all", "model" (those of the program) or "guide" (those that only the guide uses).
        data_at_once: gradients held at a time.

    Raises: DeclarationError: a setting out of range. When bound: AlgorithmError: no guide, a draw
    that is no function of noise, no such nets. DataError: reference data that do not fit or are
    fewer than 10. NonFiniteError: their gradients are not finite.

    Source: Dauncey et al. 2024, arXiv:2403.01485 (method "density").
    """

    reference: ReferenceData | None = None
    method: Method = "fisher"
    num_particles: Many = 1
    nets: Nets = "all"
    data_at_once: Many = 16

    larger_is_stranger = True

    def __post_init__(self) -> None:
        require(
            self.reference is not None or self.method == "norm", self,
            "data of the training distribution, whose gradients give each layer its scale; "
            "GradientNorm(train_x), an array as in pg.evaluate, or method='norm', which needs none",
            "reference", "method",
        )  # fmt: skip
        require(
            self.reference is None or self.method != "norm", self,
            "no reference data, since the bare norm has no scale to learn from them; leave them "
            "out, or take method='fisher'",
            "reference", "method",
        )  # fmt: skip
        if self.reference is not None:
            set_reference(self)

    @property
    def name(self) -> str:
        nets = [] if self.nets == "all" else [self.nets]
        more = changed_settings(self, shown=("reference", "method", "nets"))
        return f"GradientNorm({', '.join([self.method, *nets, *more])})"

    @property
    def unit(self) -> str:
        return {"norm": "nats^2", "fisher": "1", "density": "nats"}[self.method]

    def bind_measure(self, context: EvaluationContext) -> Function:
        """(rows, ids) -> estimate, log_layers [n, L]."""
        norms = LayerNorms(self.num_particles, self.nets, self.data_at_once)
        check_guide(context.bound, self.name)
        known = None
        if self.reference is not None:
            found = over(context, norms, self.reference, self.name, FEWEST)
            known = found["layers"].astype(np.float64)
        combine = _combiner(self.method, known, self.name)
        function = context.function(norms)

        def run(rows: Any, ids: np.ndarray) -> Values:
            layers = function(rows, ids)["layers"].astype(np.float64)
            with np.errstate(divide="ignore"):
                logs = np.log(layers)  # -inf for a layer that the datum does not pull at
            return {"estimate": combine(layers), "log_layers": logs}

        return run


def _combiner(method: str, known: np.ndarray | None, who: str) -> Callable:
    """[n, L] squared norms -> [n]; layers at which no reference datum pulls are left out."""
    if known is None:
        return lambda layers: layers.sum(1)
    if not np.isfinite(known).all():
        raise NonFiniteError(
            f"{who}: the gradients of {int((~np.isfinite(known)).any(1).sum())} of {len(known)} "
            "reference data are not finite, expected finite ones; leave those data out, or look "
            "at the model's parameters for NaN."
        )
    scale = known.mean(0)
    live = scale > 0.0
    if not live.any():
        raise DataError(
            f"{who}: no reference datum has a gradient, expected some that do; the model's ELBO "
            "does not depend on its parameters there, choose other nets."
        )
    if method == "fisher":
        return lambda layers: (layers[:, live] / scale[live]).sum(1)
    floor = np.finfo(np.float32).tiny  # a gradient of zero is taken as the smallest number
    logs = np.log(np.maximum(known[:, live], floor))
    mean, sd = logs.mean(0), logs.std(0, ddof=1)
    if (sd <= 1e-6 * np.abs(logs).max(0)).any():
        raise DataError(
            f"{who}: {int((sd <= 1e-6 * np.abs(logs).max(0)).sum())} parameter arrays have the "
            "same gradient norm for all reference data, expected norms that vary, to fit a density "
            "to; use method='fisher'."
        )

    def minus_log_density(layers: np.ndarray) -> np.ndarray:
        scaled = (np.log(np.maximum(layers[:, live], floor)) - mean) / sd
        return (0.5 * scaled**2 + np.log(sd) + 0.5 * np.log(2.0 * np.pi)).sum(1)

    return minus_log_density
