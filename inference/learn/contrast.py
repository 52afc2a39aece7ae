"""What maximum likelihood of an energy contrasts: log f at data and at draws of the model.

    p(x) = p_0(x) exp(-E(x)) / Z          E = -(sum of the factors), nats

f is p_0 exp(-E) where every site is observed, and exp(-E) alone where latents are left, or noise is
what moves: then nothing of p_0 may be learned. A factor that reads latents (an energy of z) is
taken at z ~ q(z | x) where data stand.

In a joint fit a variational bound stands for the data's part, f of them only gives metrics; f of
the draws has the laws of all sites that log Z depends on, so that of

    grad log Z = E_p[grad log f]

nothing is left out; the sites that no factor follows from integrate to one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from probgen.engine.bound import Bound
from probgen.engine.learned_constants import require_contrast, sites_of_constant
from probgen.engine.spaces import total
from probgen.errors import AlgorithmError
from probgen.trees import tree_leaves

Array = Any
WHO = "MaximumLikelihood"


class Contrast:
    """log f and E of a bound model, at any values of its sites.

    Attributes:
        variables: the sites that data or chains give.
        left: those whose own density f leaves out.
        reads_latents: whether a factor reads latents, which a guide then draws; `settle` finds out.
        is_joint: whether a bound stands for the data's part; `settle` then finds `left`.
    """

    def __init__(self, bound: Bound, space: str, is_joint: bool = False):
        self.bound, self.is_joint = bound, is_joint
        sites = bound.structure.sites
        self.variables = tuple(n for n, s in sites.items() if s.kind == "sample" and not s.is_fixed)
        self.left = self.variables if bound.latents or space == "noise" else ()
        self.reads_latents = False

    @property
    def has_draws(self) -> bool:
        """Whether the base draws all its sites: a flat one, say, does not."""
        sites = self.bound.structure.sites
        return all(getattr(sites[n].declaration, "has_draw", True) for n in self.variables)

    @property
    def has_density(self) -> bool:
        """Whether the base gives the data a density with its constant."""
        return not self.bound.latents and not self.bound.structure.improper

    def inputs(self, batch: Mapping) -> dict[str, Array]:
        """What a batch conditions on."""
        return {n: v for n, v in batch.items() if n not in self.bound.observed}

    def sums(self, params: Mapping, values: Mapping, batch: Mapping, key: Any) -> tuple:
        """(log f, E, log p_0) at values [n, *event] of the sites, nats, [n] each."""
        size = next(iter(values.values())).shape[0]
        sites = self.bound.trace(
            params, self.inputs(batch), values, key=key, batch_size=size, condition=False
        )
        tilt, everything = total(sites, leave=self.variables), total(sites)
        return total(sites, leave=self.left), -tilt, everything - tilt

    def log_base(self, params: Mapping, values: Mapping, key: Any) -> Array | None:
        """What of log f is the base's, at values [n, *event]: [n], or None where nothing is."""
        if self.left == self.variables:
            return None
        log_f, energy, _ = self.sums(params, values, {}, key)
        return log_f + energy

    def base_draws(
        self, params: Mapping, key: Any, num_draws: int, batch: Mapping | None = None
    ) -> dict[str, Array]:
        """Draws of the program without its factors, given a batch's inputs."""
        inputs = self.inputs(batch or {})
        sites = self.bound.trace(params, inputs, key=key, batch_size=num_draws, condition=False)
        return {n: sites[n].value for n in self.variables}

    def data(self, params: Mapping, batch: Mapping, key: Any) -> dict[str, Array]:
        """The data's values, with those of latents that a factor reads, from the guide."""
        seen = {n: batch[n] for n in self.bound.observed}
        if not self.reads_latents:
            return seen
        return {**seen, **self.latents(params, batch, key)}

    def latents(self, params: Mapping, batch: Mapping, key: Any) -> dict[str, Array]:
        """z ~ q(z | x), or {} where there are none."""
        if not self.bound.latents:
            return {}
        drawn = self.bound.trace_guide(params, batch, key=key)
        return {n: drawn[n].value for n in self.bound.latents}

    def settle(self, params: Mapping, batch: Mapping, key: Any) -> None:
        """Looks at the first batch, and refuses what a contrast would learn wrongly.

        Raises:
            AlgorithmError: by `engine.dependence.require_contrast`; a factor reads latents that
                neither the data nor a guide give.
        """
        if self.is_joint:
            return self._settle_joint(params, batch)
        require_contrast(self.bound, params, batch, self.left, WHO)
        self.reads_latents = False
        if not self.left:
            return
        b, rng = self.bound.backend, np.random.default_rng(0)
        # Off zero, where a freshly drawn last layer often is.
        moved = b.tree_map(
            lambda p: b.asarray(
                b.to_numpy(p) + np.float32(0.1 * rng.standard_normal(tuple(p.shape)))
            ),
            dict(params),
        )

        def energies(params: Mapping, moved: Mapping, batch: Mapping, key: Any, k: Any) -> Any:
            return self.sums(moved, self.data(params, batch, key), batch, k)[1]

        look = b.compile(energies, num_calls=2)
        one, other = (look(dict(params), moved, batch, key, k) for k in b.split(key, 2))
        same = np.array_equal(b.to_numpy(one), b.to_numpy(other), equal_nan=True)
        self.reads_latents = not same
        if self.reads_latents and self.bound.model.guide is None:
            raise AlgorithmError(
                f"{WHO}: a factor of {self.bound.model.name!r} reads the latents "
                f"{list(self.bound.latents)}, which neither the data nor a guide give, expected an "
                f"energy of {list(self.bound.observed)} alone, or a guide that draws them at data; "
                f"tilt on='{self.bound.observed[0]}', or a VAE, which has an encoder."
            )

    def _settle_joint(self, params: Mapping, batch: Mapping) -> None:
        require_contrast(self.bound, params, batch, (), WHO)
        within = sites_of_constant(self.bound, params, batch)
        self.left = tuple(n for n in self.variables if n not in within)
        self.reads_latents = not within.isdisjoint(self.bound.latents)

    def require_taught(self, loss: Any, params: Mapping, *args: Any) -> None:
        """Refuses nets that are not frozen and get no gradient from f at all.

        Args:
            loss: (params, *args) -> scalar.

        Raises:
            AlgorithmError: names them.
        """
        b = self.bound.backend
        trainable, frozen = self.bound.split_params(params)

        def at(trainable: Any, *args: Any) -> Any:
            return loss({**trainable, **frozen}, *args)

        grads = b.compile(b.grad(at), num_calls=1)(trainable, *args)
        leaves = {n: [b.to_numpy(g) for g in tree_leaves(t)] for n, t in grads.items()}
        still = [n for n, gs in leaves.items() if not any(g.any() for g in gs)]
        if still:
            raise AlgorithmError(
                f"{WHO}: the nets {still} are not frozen and the factors teach "
                "them nothing, expected a fitted base; fit it first and tilt the Fitted: "
                "Tilted(fitted, energy=...), or give bound=ELBO() to learn them with the energy."
            )


def require_energy(bound: Bound) -> None:
    """Refuses a model that has no energy to learn, and data that observe none of its sites."""
    sites = bound.structure.sites
    factors = [n for n, s in sites.items() if s.kind == "factor"]
    frozen = bound.frozen()
    trainable = [n for n in bound.structure.nets if n not in frozen]
    if not bound.observed:
        raise AlgorithmError(
            f"{WHO}: the data observe no site of {bound.model.name!r}, expected "
            f"data for one of {list(bound.latents)}."
        )
    if not factors and not bound.structure.improper:
        guide = "" if bound.model.guide or not bound.latents else " with a guide (AutoNormal())"
        raise AlgorithmError(
            f"{WHO}: the density of {bound.model.name!r} has its constant (no "
            "pg.factor), expected one that is known up to a constant, whose gradient takes "
            "chains that draw from the model; a normalised one needs no chains: use "
            f"SVI(ELBO()){guide}, which maximises log p(x) itself where there are no latents, "
            "and a bound on it where there are."
        )
    if not trainable or not factors:
        raise AlgorithmError(
            f"{WHO}: the model {bound.model.name!r} has the factors {factors} and "
            f"the trainable nets {trainable}, expected an energy to learn: declare an EBM or a "
            "Tilted, or use pg.factor in a program."
        )


def require_joint(bound: Bound) -> None:
    """Refuses a model that has no bound, or whose log Z is not that of one datum.

    Raises:
        AlgorithmError: no latents, or no guide, or the datum has no density; a latent that all data
            share.
    """
    if not bound.latents:
        raise AlgorithmError(
            f"{WHO}: got bound=ELBO() for {bound.model.name!r}, all of whose sites are observed, "
            "expected latents; leave bound out: the log-likelihood itself is what is learned."
        )
    if bound.has_global_latents:
        raise AlgorithmError(
            f"{WHO}: got bound=ELBO() for {bound.model.name!r} with latents outside the data "
            "plate, expected one log Z a datum; move them inside pg.data_plate()."
        )
    bound.require_guide(WHO)
    bound.require_short(WHO)
    bound.require_density_of_data(WHO)
    bound.require_latents_drawn(WHO)
