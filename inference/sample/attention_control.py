"""Attention control: a draw that looks where another one looked, but for what is to be new.

The source's maps A*_t come with its codes, from the null-text pass of `NullTextInversion`, a layer,
a head and a step each. The draw starts at the source's x_T with the source's null texts phi_t, and
its conditional branch uses, of the maps A_t of its own condition,

    A_t[..., i, j] at the columns j that are kept,  A*_t[..., i, j] at all others.

So the picture stays laid out as it was, while the tokens that are kept (a changed word, the rows of
a subject) look where they will. The branch without the condition is left alone.

Sources: Hertz et al. 2022, arXiv:2208.01626; Wang et al. 2023, arXiv:2312.00079, algorithm 3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from probgen.engine.bound import Bound
from probgen.engine.target import START_MAPS
from probgen.errors import DataError
from probgen.inference.sample.ancestral import DDIM
from probgen.inference.sample.inversion import swapped
from probgen.inference.sample.reverse import Columns, Reverse, recursion
from probgen.inference.sample.start_codes import MAPS, map_rows, require_maps
from probgen.language.declared import declaration, require
from probgen.nets import MapReplacement

Array = Any


@declaration(eq=False)
class AttentionControl(Reverse):
    """Draws that look where their source looked: replacing what a picture shows, in its place.

        ddim = DDIM(50, guidance_scale=4.0)
        learn = NullTextInversion(ddim, keeps_maps=True)
        codes = fitted.encode(picture[None], {"condition": said}, method=learn)
        kept = np.array([word == "dog" for word in words])
        edit = AttentionControl(ddim, kept)
        edited = pg.generate(fitted, 1, method=edit, start=codes, inputs={"condition": new}, seed=0)

    The draws may be another model's than the codes, such as one with a subject, if both have the
    same denoiser and number of context rows.

    Args:
        sampler: the `DDIM` that the codes were made for.
        columns_kept: [m] booleans, one for each row of the context: True where the draw's own maps
            are used.
        is_renormalized: whether each pixel's weights are divided by their sum after that.

    With no column kept and the source's condition a draw is the source as its codes have it; with
    all kept it is the sampler's.

    Raises (by generate): AlgorithmError: the model shows no maps. DataError: `start` without maps.
    ShapeError: maps of another number of steps, heads, pixels or context rows. UnknownName: maps of
    a layer that the model has not.

    Sources: Hertz et al. 2022, arXiv:2208.01626; Wang et al. 2023, arXiv:2312.00079, section 3.4.
    """

    sampler: DDIM
    columns_kept: np.ndarray
    is_renormalized: bool = False

    of_priors = False  # it is the diffusion's own denoiser that attends

    def __post_init__(self) -> None:
        kept = self.columns_kept
        fits = kept.ndim == 1 and kept.dtype == np.bool_
        require(fits, self, "[m] booleans, one for each row of the context", "columns_kept")
        require(self.sampler.eta == 0.0, self, "DDIM without noise, eta=0", "sampler")

    def note(self, stats: Mapping[str, np.ndarray] | None = None) -> str:
        """What the draws target."""
        return (
            f"{self.sampler.note(stats)}; by the maps of a source, but for "
            f"{int(self.columns_kept.sum())} of {len(self.columns_kept)} context rows: no law that "
            "is known"
        )

    def columns(self, model: Any) -> Columns:
        """The sampler's table."""
        return self.sampler.columns(model)

    def start_rows(self, model: Any, start: Any, num_samples: int) -> dict[str, np.ndarray]:
        """As of other samplers, and the maps."""
        rows = super().start_rows(model, start, num_samples)
        return rows | map_rows(start, num_samples, self.num_calls(model))

    def along(self, bound: Bound, batch: Mapping) -> dict[str, Array]:
        """Null texts and maps of each step.

        Raises:
            DataError: the draws have no start with maps.
        """
        ops = bound.backend.ops
        maps = {
            MAPS + n.removeprefix(START_MAPS): swapped(ops, v)
            for n, v in batch.items()
            if n.startswith(START_MAPS)
        }
        if not maps:
            raise DataError(
                "generate: got AttentionControl without start, expected start=codes of a source "
                "with its maps, by NullTextInversion(..., keeps_maps=True)."
            )
        return {**super().along(bound, batch), **maps}

    def step(self, bound: Bound) -> Callable:
        """The sampler's leap, by a prediction with the source's maps."""
        model: Any = bound.model
        require_maps(model, "AttentionControl")

        def ask(params: Mapping, x: Array, t: Array, inputs: Mapping) -> Array:
            maps = {n.removeprefix(MAPS): v for n, v in inputs.items() if n.startswith(MAPS)}
            rest = {n: v for n, v in inputs.items() if not n.startswith(MAPS)}
            replace = MapReplacement(maps, self.columns_kept, self.is_renormalized)
            w = self.sampler.guidance_scale
            return model.predict_with_maps(params, x, t, rest, w, replace=replace)[0]

        return recursion(bound, self.sampler.guidance_scale, self.sampler.clip_sample_range, ask)
