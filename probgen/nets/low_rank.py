"""Low-rank adaptation: a net whose weights are held, each matrix with a learned product added.

    W' = W + (scale / rank) A B,    A [in, rank] normal with variance 1 / in,  B [rank, out] zero

so it starts as the net itself, and of a fit only A and B move.

Source: Hu et al. 2021, arXiv:2106.09685, section 4.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import numpy as np

from probgen.errors import DeclarationError, UnknownName
from probgen.language import ops
from probgen.language.declared import declaration
from probgen.language.kinds import AnyNet, Positive, Text, Width, distinct, not_empty
from probgen.language.wording import did_you_mean
from probgen.nets.attention_maps import has_maps
from probgen.nets.base import Array, Key, Params, Shape, draw_weight, wants_data, zeros
from probgen.nets.buffers import Path, buffer_paths
from probgen.trees import tree_items, tree_map

# What a net may have beyond `init` and `apply`: taken from it, or asked of it with merged weights.
OF_NET = {"in_ndim", "framework", "out_shape", "check_values", "check_times"}
WITH_WEIGHTS = {"null", "at", "penalty", "check"}


@declaration
class LowRank:
    """A net with its weights held, and a learned product A B added to some of its matrices.

    Parameters are {"net": the net's own, "low_rank": {layer: {"down": A, "up": B}}}. The net's own
    are buffers (`probgen/nets/buffers.py`): no optimiser, weight decay or moving average moves
    them, to the bit, and no gradient is taken. That is so where `LowRank` is a net of the model by
    itself, and not a layer within another.

        low = nets.LowRank(fitted.model.denoiser, rank=4)
        model = dataclasses.replace(fitted.model, denoiser=low)
        init = {**fitted.params, "denoiser": low.params_of(fitted.params["denoiser"])}
        tuned = pg.fit(model, x, Denoising(), init=init, freeze=("condition",))

    `merged(tuned.params["denoiser"])` are parameters of the plain net.

    Attributes:
        net: any declared net.
        rank: of the products; more than a matrix has is no help and no harm.
        layers: names of layers, or of parts with several, whose matrices get one; all others,
            biases, norms and convolutions among them, stay as they are.
        scale: of the products, over `rank`.

    Raises:
        UnknownName: at `init`, a name in `layers` that no weight matrix has.
        DeclarationError: at `init`, a net with buffers of its own, such as a spectral norm's, which
            would not follow the weights.
    """

    net: AnyNet
    rank: Width = 4
    layers: Annotated[tuple[Text, ...], not_empty, distinct] = ("query", "key", "value", "out")
    scale: Positive = 1.0

    def __getattr__(self, name: str) -> Any:
        if name in OF_NET:
            return getattr(self.net, name)
        if name in WITH_WEIGHTS:
            own = getattr(self.net, name)
            return lambda params, *given: own(self.merged(params), *given)
        raise AttributeError(f"{type(self).__name__} has no {name!r}")

    @property
    def has_maps(self) -> bool:
        """Whether the net's attention maps can be read and replaced."""
        return has_maps(self.net)

    @property
    def wants_data(self) -> bool:
        """Whether the net starts from a first batch."""
        return wants_data(self.net)

    def init(self, key: Key, *shapes: Shape, data: Sequence[Array] | None = None) -> Params:
        more = {} if data is None else {"data": data}
        return self._started(self.net.init(key, *shapes, **more), key)

    def params_of(self, params: Params, seed: int = 0) -> Params:
        """Parameters to start from, of a fitted net's own: the same net, to the bit.

        Args:
            params: of `net`.
            seed: of A.
        """
        return self._started(params, np.random.default_rng(seed))

    def _started(self, params: Params, key: Key) -> Params:
        if buffer_paths(self.net, params):
            raise DeclarationError(
                f"LowRank: got {self.net!r} with buffers of its own, expected a net whose "
                "parameters are all weights: a spectral norm does not follow A B."
            )
        low: dict = {}
        for path, weight in self._matched(params):
            here = low
            for name in path[:-1]:
                here = here.setdefault(name, {})
            rows, columns = weight.shape
            here["down"] = draw_weight(key, (rows, self.rank), rows, 1.0)
            here["up"] = zeros(self.rank, columns)
        return {"net": params, "low_rank": low}

    def _matched(self, params: Params) -> Iterator[tuple[Path, Array]]:
        """Path and value of each matrix that gets a product."""
        matrices = [(p, w) for p, w in tree_items(params) if p[-1] == "weight" and w.ndim == 2]
        known = {name for path, _ in matrices for name in path[:-1]}
        for name in self.layers:
            if name not in known:
                raise UnknownName(
                    f"LowRank: got a layer {name!r}, expected names on the way to weight matrices "
                    f"of {type(self.net).__name__}, {', '.join(sorted(known)) or 'of which none'}"
                    f"{did_you_mean(name, known) or '; name some of them in layers.'}"
                )
        return (each for each in matrices if set(self.layers) & set(each[0][:-1]))

    def apply(self, params: Params, *inputs: Array, **options: Any) -> Any:
        held = {**params, "net": tree_map(ops.stop_gradient, params["net"])}
        return self.net.apply(self.merged(held), *inputs, **options)

    def merged(self, params: Params) -> Params:
        """Parameters of the plain net with W + (scale / rank) A B in place of W."""
        return self._with(params["net"], params["low_rank"])

    def _with(self, tree: Params, low: Mapping) -> Params:
        if "down" in low and "weight" in tree:
            product = (self.scale / self.rank) * (low["down"] @ low["up"])
            return {**tree, "weight": tree["weight"] + product}
        return {k: self._with(v, low[k]) if k in low else v for k, v in tree.items()}

    def buffers(self, params: Params) -> list[Path]:
        """All that is the net's own; see `probgen/nets/buffers.py`."""
        return [("net", *path) for path, _ in tree_items(params["net"])]

    def after_update(self, params: Params) -> Params:
        """Nothing follows an optimiser's step."""
        return params
