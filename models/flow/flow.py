"""Normalizing flows: data as an invertible function of noise, with an exact density.

    x = f_theta(eps),  eps ~ base          log p(x) = log base(f^-1(x)) + log |det d f^-1 / dx|

f is a chain of layers (`layers.py`), each of which moves values by a map (`maps.py`) whose numbers
a net computes; the distribution is a `dist.Transformed`, so that it is a function of normal noise
like any other, has noise space, row keys and both directions on both backends.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, NamedTuple

import probgen as pg
from probgen import dist, nets, ops
from probgen.errors import ShapeError, UnknownName
from probgen.language.declared import declaration
from probgen.language.dist import Deferred
from probgen.language.kinds import Many, Text, Width, distinct, not_empty
from probgen.language.model import Distribution, Model
from probgen.models.flow.layers import Coupling, Layer
from probgen.nets.base import numbered

Array = Any


@declaration
class Flow(Model):
    """A normalizing flow over data of one shape: vectors (d,) or images (h, w, c).

    A flow is two choices, which the literature's names combine, and so does the declaration: whose
    numbers a value is moved by (`Coupling`, `MaskedAutoregressive`), and how it moves (`Affine`,
    `Spline`):

        RealNVP                Flow((2,), Coupling(nets.MLP((64, 64))))
        neural spline flow     Flow((2,), Coupling(nets.MLP((64, 64)), Spline(num_bins=8)))
        MAF                    Flow((2,), MaskedAutoregressive(nets.MADE((64, 64))))
        IAF                    Flow((2,), MaskedAutoregressive(nets.MADE((64, 64)), fast="draws"))

    `pg.fit(flow, x, SVI(ELBO()))` is maximum likelihood. As any model it is a prior,
    `VAE(latent=flow)`, the base of `Tilted` (in noise space too), and a part of programs, where
    `flow.distribution()` is the density of one site, a guide's as well.

    Args:
        event_shape: of one datum; a number d is (d,).
        layer: a layer, or several that stand one after another, from data to noise.
        num_layers: how often.
        base: the law of the noise, of events of `event_shape`; None: standard normal.
        standardize: shift and scale each coordinate (of images: each channel) next to the data, by
            parameters that `fit` starts from the moments of its first batch; splines move what lies
            within their bound only. The flow of a model that is not fitted starts as the identity.
        inputs: names of the program's inputs, vectors of one row a datum, which every net reads
            besides: a conditional density p(x | inputs), and then the nets must take several
            inputs, as MLP and MADE do.

    Sites: "x". Nets: "layer0", "layer1", ..., and "standardize".

    Raises:
        DeclarationError: data of a shape that a layer cannot part, or a base of other events.

    Sources: Rezende & Mohamed 2015, arXiv:1505.05770; Papamakarios et al. 2021, arXiv:1912.02762;
    the first batch's moments: Kingma & Dhariwal 2018, arXiv:1807.03039 (actnorm).
    """

    event_shape: Width | Annotated[tuple[Width, ...], not_empty]
    layer: Layer | Annotated[tuple[Layer, ...], not_empty] = Coupling()
    num_layers: Many = dataclasses.field(default=6, kw_only=True)
    base: Distribution | None = dataclasses.field(default=None, kw_only=True)
    standardize: bool = dataclasses.field(default=True, kw_only=True)
    inputs: Annotated[tuple[Text, ...], distinct] = dataclasses.field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        shape: Any = self.event_shape
        shape = (shape,) if isinstance(shape, int) else shape
        object.__setattr__(self, "event_shape", shape)
        for layer in self.layers():
            layer.check(shape)

    def layers(self) -> tuple[Layer, ...]:
        """All of them, from data to noise."""
        own = self.layer if isinstance(self.layer, tuple) else (self.layer,)
        return own * self.num_layers

    @property
    def program(self) -> Any:
        def program(**inputs: Array) -> None:
            with pg.data_plate():
                pg.sample("x", self.distribution(**inputs))

        kind = inspect.Parameter.KEYWORD_ONLY
        given = [inspect.Parameter(name, kind) for name in self.inputs]
        program.__signature__ = inspect.Signature(given)  # type: ignore[attr-defined]
        return program

    def distribution(
        self, base: Deferred | None = None, name: str = "", **inputs: Array
    ) -> Deferred:
        """The density of one site, for a program or a guide of your own.

        Args:
            base: another base than the flow's, with parameters of a guide, say:
                `flow.distribution(dist.Normal(loc, scale).to_event(1), "q/")`.
            name: stands before the names of the flow's nets; two flows in one program need two.
            inputs: the flow's own, by name.

        Raises:
            UnknownName: other inputs than the flow's.
        """
        if set(inputs) != set(self.inputs):
            raise UnknownName(
                f"Flow.distribution: got the inputs {sorted(inputs)}, expected {[*self.inputs]}; "
                "give each by its name, as declared by inputs=."
            )
        shape: Any = self.event_shape
        standard = dist.Normal(0, 1).expand(shape).to_event(len(shape))
        chain = Chain(self, name, tuple(inputs[n] for n in self.inputs))
        return dist.Transformed(base or self.base or standard, chain)

    def formula(self) -> str:
        base = r"\mathcal{N}(f_\theta(x);\ 0, I)" if self.base is None else r"p_0(f_\theta(x))"
        names = ", ".join(rf"\mathrm{{{n}}}" for n in self.inputs)
        given = rf" \mid {names}" if names else ""
        return rf"p_\theta(x{given}) = {base}\ \left|\det \partial f_\theta / \partial x\right|"


class Chain(NamedTuple):
    """A flow's layers as one transform of a `dist.Transformed`, inside of a run.

    Attributes:
        flow: the declaration.
        name: before the names of its nets.
        context: the values of its inputs.
    """

    flow: Flow
    name: str
    context: tuple

    def forward(self, eps: Array) -> Array:
        """Data of noise."""
        return self.forward_and_log_det(eps)[0]

    def forward_and_log_det(self, eps: Array) -> tuple[Array, Array]:
        """(x, log |det dx/d eps|)."""
        x, total = self._checked(eps), 0.0
        for layer, i, net in reversed(self._layers()):
            x, more = layer.invert(x, i, self.shape, net, *self.context)
            total = total + more
        if not self.flow.standardize:
            return x, total
        # Not from a first batch in this direction, in which x is noise still.
        loc, log_scale = self._moments(ops.zeros_like(x))
        return x * ops.exp(log_scale) + loc, total + self._volume(log_scale)

    def inverse_and_log_det(self, x: Array) -> tuple[Array, Array]:
        """(eps, log |det d eps/dx|)."""
        eps, total = self._checked(x), 0.0
        if self.flow.standardize:
            loc, log_scale = self._moments(eps)
            eps, total = (eps - loc) * ops.exp(-log_scale), -self._volume(log_scale)
        for layer, i, net in self._layers():
            eps, more = layer.apply(eps, i, self.shape, net, *self.context)
            total = total + more
        return eps, total

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one event."""
        return self.flow.event_shape  # type: ignore[return-value]

    def _layers(self) -> list[tuple[Layer, int, Callable]]:
        """(layer, the count of its turns, what gives a net of it its parameters)."""
        layers = self.flow.layers()
        names = [self.name + numbered("layer", i, len(layers)) for i in range(len(layers))]
        # Of several layers in turn each comes to both sides, whatever their number is.
        size = len(layers) // self.flow.num_layers
        return [
            (layer, i // size + i % size, partial(pg.net, names[i]))
            for i, layer in enumerate(layers)
        ]

    def _moments(self, x: Array) -> tuple[Array, Array]:
        given = pg.net(f"{self.name}standardize", nets.LocScale(len(self.shape)))(x)
        return given["loc"], given["log_scale"]

    def _volume(self, log_scale: Array) -> Array:
        return ops.sum(log_scale) * math.prod(self.shape[:-1])

    def _checked(self, x: Array) -> Array:
        got = tuple(x.shape)
        if got[len(got) - len(self.shape) :] != self.shape:
            form = ", ".join(map(str, self.shape))
            raise ShapeError(
                f"Flow: got values of shape {got}, expected [..., {form}] "
                "as declared by event_shape; correct it, or a base of your own."
            )
        return x

    def __repr__(self) -> str:
        return f"{type(self.flow).__name__}{self.shape}"
