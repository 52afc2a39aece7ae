"""Independent draws from the model's own guide: a VAE's encoder, or what SVI fitted.

    z ~ q(z | x),     log w = log p(z, x) - log q(z | x)

They are draws of the posterior only as far as the guide is it; the weights tell (`khat`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from probgen.backends.chains import Chains
from probgen.backends.protocol import Backend
from probgen.engine.chain_pieces import Pieces
from probgen.engine.guide_draws import draw_guide
from probgen.engine.markov import NUM_PIECES, joined
from probgen.engine.posterior import CHUNK_ELEMENTS, Posterior
from probgen.engine.target import Kernel, Target
from probgen.errors import AlgorithmError, SupportError
from probgen.language.declared import declaration
from probgen.language.kinds import Many
from probgen.progress import bar
from probgen.trees import tree_map


@declaration
class Guide:
    """Draws from the model's own guide given the data, with its fitted parameters.

        draws = pg.infer(fitted, data, Guide(num_samples=1000), seed=0)

    Args:
        num_samples: independent draws, one chain.

    `sample_stats`: `lp`, as of a chain, and `log_weight`, log p(z, x) - log q(z | x), nats, whose
    `khat` says whether reweighted draws may stand for the posterior.

    For calibration: right for guides that read the data (a VAE's encoder). A guide whose parameters
    were fitted to one data set says nothing of others: give a function that fits anew instead.
    """

    num_samples: Many = 1000

    num_chains = 1
    num_warmup = 0
    thinning = 1
    reads_guide = True

    @property
    def num_draws(self) -> int:
        """As many as there are samples."""
        return self.num_samples

    def kernel(self, backend: Backend, target: Target, num_calls: int | None = None) -> Kernel:
        """Refused: a guide draws latents given data, at once.

        Raises:
            AlgorithmError: always.
        """
        raise AlgorithmError(
            "Guide: got a target to move chains on (pg.generate and learners), expected a sampler "
            "such as Langevin(1e-2); Guide is for pg.infer."
        )

    def note(self, stats: Mapping[str, np.ndarray] | None = None) -> str:
        """What the draws are."""
        return f"{self.num_samples} draws from the guide, not from the posterior itself"

    def cure(self) -> str:
        """What to do where draws are NaN or infinite."""
        return "look at the guide's parameters for NaN, and at the scales of its distributions"

    def draws(
        self, posterior: Posterior, params: Any, rows: Any, key: Any, token: Any,
        progress_bar: bool, pieces: Pieces,
    ) -> Chains:  # fmt: skip
        """Independent draws, on the real line as those of chains are; for `pg.infer`."""
        bound, b = posterior.bound, posterior.bound.backend
        bound.require_guide("Guide")
        size = sum(int(np.prod(posterior.shape(n))) for n in posterior.latents)
        size += sum(int(np.prod(np.shape(v))) for v in rows.values())
        most = max(1, CHUNK_ELEMENTS // max(size, 1))
        length = min(-(-self.num_samples // NUM_PIECES), most)

        def piece(params: Any, rows: Any, key: Any) -> dict[str, Any]:
            drawn = draw_guide(
                bound, params, rows, key, num_particles=length, batch_size=posterior.num_rows
            )
            log_q: Any = 0.0
            for site in drawn.sites.values():
                log_q = log_q + b.ops.sum(b.ops.reshape(site.log_prob, (length, -1)), axis=-1)
            shapes = {n: (length, *posterior.shape(n)) for n in posterior.latents}
            # Particles stand in front of as many axes of one as plates are deep.
            values = {n: b.ops.reshape(drawn.latents[n], s) for n, s in shapes.items()}

            def one(given: Any, params: Any, rows: Any) -> tuple:
                at = posterior.point(params, rows, given=given)
                return at.free, at.log_density, sum(at.site_log_prob.values()), at.outside

            each = b.vmap(one, in_axes=(0, None, None))
            free, lp, log_joint, outside = each(values, params, rows)
            lost = {n: b.ops.sum(v) for n, v in outside.items() if n in posterior.latents}
            stats = {"lp": lp, "log_weight": log_joint - log_q}
            return {"free": free, "stats": stats, "outside": lost}

        count = -(-self.num_samples // length)
        compiled = b.compile(piece, num_calls=count)
        with bar(self.num_samples, wanted=progress_bar, unit="draw") as shown:
            for i in range(count):
                done = min((i + 1) * length, self.num_samples)
                if i >= len(pieces.parts):
                    out = compiled(params, rows, b.fold_in(key, i))
                    _check_inside(bound.model.name, b.tree_map(b.to_numpy, out["outside"]))
                    kept = {n: out[n] for n in ("free", "stats")}
                    pieces.add(
                        tree_map(lambda v, rest=done - i * length: b.to_numpy(v)[:rest, None], kept)
                    )
                    pieces.pause(f"{done} of {self.num_samples} draws")
                shown(done - i * length, words=pieces.words)
                if pieces.suffice(i + 1):
                    break
        return joined(pieces, 0)


def _check_inside(model: str, outside: Mapping[str, np.ndarray]) -> None:
    lost = {n: int(v) for n, v in outside.items() if v > 0}
    if lost:
        name, count = next(iter(lost.items()))
        raise SupportError(
            f"Guide: {count} values that the guide of {model!r} draws for {name!r} lie outside its "
            "support in the model, expected all inside; give the guide's latent that support."
        )
