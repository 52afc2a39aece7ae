"""What algorithms ask of a model before they work with it: the part of `Bound` that refuses.

    bound.require_normalized("IWAE"), bound.require_local_latents("ELBO"), ...

Each raises an `AlgorithmError` that says who asks, what the model has, and what does without.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from probgen.engine.data_types import cure_discrete
from probgen.engine.structure import Structure
from probgen.errors import AlgorithmError
from probgen.language.capabilities import Denoises
from probgen.language.model import Model, capability
from probgen.language.run import DATA_PLATE

LONG = 200  # steps of a chain that programs unroll in bearable time


class Requirements:
    """See the head of this file; the attributes are those of `Bound`."""

    model: Model
    structure: Structure
    guide_structure: Structure | None
    observed: tuple[str, ...]
    is_once: bool
    make_short: Callable[[], Any] | None

    @property
    def latents(self) -> tuple[str, ...]:
        raise NotImplementedError  # `Bound` has it

    @property
    def is_normalized(self) -> bool:
        raise NotImplementedError  # `Bound` has it

    def require_normalized(self, who: str) -> None:
        """Refuses a density that is known up to a constant, where its nats would be quoted.

        Raises:
            AlgorithmError: names the factors, and what gives the constant or does without it.
        """
        if self.is_normalized:
            return
        self.require_density_of_data(who)
        factors, improper = self.structure.factors, self.structure.improper
        said = [f"it has the factors {factors}"] if factors else []
        said += [f"the densities of {improper} do not integrate to one"] if improper else []
        why = f" ({', '.join(said)})" if said else ""
        raise AlgorithmError(
            f"{who}: the density of {self.model.name!r} is known up to a constant{why}, expected "
            "a normalised one, since log Z would be missing from every number; log_partition "
            "estimates log Z, EnergyLogLikelihood takes it, and UnnormalizedLogDensity and "
            "UnnormalizedBound do without."
        )

    def require_guide(self, who: str) -> Callable:
        """The guide; of a model without latents, which needs none, an empty program.

        Raises:
            AlgorithmError: there are latents and no guide.
        """
        if self.model.guide is None and not self.latents:
            return _no_latents
        endless = [n for n in self.latents if self.structure.sites[n].is_discrete]
        if self.model.guide is None and endless:
            raise AlgorithmError(
                f"{who}: the discrete latent {endless[0]!r} has no end of values "
                f"({self.structure.sites[endless[0]].distribution}), or a computed number of them, "
                f"expected finitely many, which are summed out, or a guide that draws it; "
                f"{cure_discrete(self.structure.sites[endless[0]].scan)}."
            )
        if self.model.guide is None:
            self.require_density_of_data(who)
            raise AlgorithmError(
                f"{who}: the model {self.model.name!r} has no guide, expected one (an approximate "
                "posterior over its latents); give a VAE an encoder, or write one with "
                "@my_model.with_guide; without a guide use pg.infer or MaximumLikelihood."
            )
        return self.model.guide

    def require_density_of_data(self, who: str) -> None:
        """Refuses data that the program computes from latents and gives no density, not even up to
        a constant: nothing can be conditioned on them.

        Raises:
            AlgorithmError: names them, and what has one.
        """
        computed = [n for n in self.observed if n in self.structure.computed]
        if computed:
            raise AlgorithmError(
                f"{who}: the data {computed} have no density under {self.model.name!r}, not even "
                "up to a constant, expected a likelihood of them: what is computed from latents "
                "is drawn and not scored. Judge its draws (probgen.evaluation), give the generator "
                "a likelihood such as likelihoods.Normal, or tilt samples and not means, "
                'Tilted(base, energy, through="sample").'
            )

    def require_latents_drawn(self, who: str) -> None:
        """Refuses a guide that draws what the data observe, of which a fit would learn nothing.

        Raises:
            AlgorithmError: names the sites.
        """
        if self.guide_structure is None:
            return
        drawn = {n for n, s in self.guide_structure.sites.items() if s.kind == "sample"}
        if seen := sorted(drawn & set(self.observed)):
            raise AlgorithmError(
                f"{who}: the guide of {self.model.name!r} draws {seen}, which the data observe, "
                f"expected latents alone, {sorted(self.latents)}; leave them out of the guide (one "
                "for data without them is another: my_model.with_guide), or out of the data."
            )

    def require_local_latents(self, who: str) -> None:
        """Refuses latents that all data share, where a number is asked for of each datum.

        Raises:
            AlgorithmError: names them, and what is known in their place.
        """
        shared = [n for n in self.latents if not self.structure.sites[n].is_local]
        if shared:
            raise AlgorithmError(
                f"{who}: the latents {shared} of {self.model.name!r} stand outside the data plate, "
                "expected local ones, of single data, since data that share some have no log p(x) "
                "of their own. How well each is predicted: pg.infer(..., log_likelihood=True), "
                "then arviz_stats.loo of its draws. log p(data), one number: log-mean-exp of "
                "sample_stats.log_weight of pg.infer(fitted, data, Guide(1000)). A fit has its "
                "bound as history['elbo'], per datum."
            )

    @property
    def is_long(self) -> bool:
        """Whether it goes through a chain of more steps than its program runs in bearable time."""
        return len(self.model.sketch().sites) > LONG

    def require_short(self, who: str, cure: str = "") -> None:
        """Refuses a chain of so many steps that what runs all of them is of no use.

        Args:
            cure: what to do, where it is not what to do for a bound.

        Raises:
            AlgorithmError: says how many, and what draws one of them in place of all.
        """
        if not self.is_long:
            return
        of_bound = (
            "Denoising() learns it by one step a datum, and DenoisingELBO(num_steps=...) estimates "
            "this bound by a few"
            if capability(self.model, Denoises) is not None
            else "with a diffusion as its latent's prior, Denoising() learns that behind a frozen "
            "encoder and decoder"
        )
        cure = cure or of_bound
        if self.make_short is not None and cure is of_bound:
            cure = f"ELBO(...), a mean, is learned and measured by one step for all; {cure}"
        raise AlgorithmError(
            f"{who}: {self.model.name!r} goes through a chain of {len(self.model.sketch().sites)} "
            "steps, all of which a bound by its program runs for each draw, expected at most "
            f"{LONG}; {cure}; or take a shorter chain, such as NoiseSchedule.rescaled(50)."
        )

    def require_rows(self, who: str) -> None:
        """Refuses data of sites whose first axis is not that of the data plate.

        Outside it the terms of a minibatch would not be scaled to the whole data set; inside
        further plates rows of the data are no batches.

        Raises:
            AlgorithmError: names the site, where it stands and the cure.
        """
        if self.is_once:
            return
        for name, site in self.structure.sites.items():
            if name not in self.observed and not site.has_rows:
                continue
            plates = [p for p in site.plates if p != DATA_PLATE]
            if not site.is_local:
                where = f"in the plates {plates}" if plates else "in no plate"
                raise AlgorithmError(
                    f"{who}: the data observe site {name!r}, which stands {where}, expected it "
                    "inside `with pg.data_plate():`, since batches are rows of the data and only "
                    "what stands in there is scaled to the whole data set; put the site into "
                    "pg.data_plate() and leave out .expand([n]).to_event(1) or pg.plate of the "
                    "number of data; for one value that is not made of rows use pg.infer."
                )
            if plates:
                raise AlgorithmError(
                    f"{who}: the data observe site {name!r} inside the plates {plates}, expected "
                    "the data plate alone, since batches are rows of the data; make those axes "
                    "events with .expand([...]).to_event(n), or use pg.infer on all the data."
                )


def _no_latents() -> None:
    """The guide of a model without latents."""
