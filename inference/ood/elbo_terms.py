"""The log-likelihood of a datum as a score, and the two parts of its lower bound.

    NLL              -log p(x), estimated by IWAE_K
    reconstruction   -E_q log p(x | z)
    KL               KL(q(z | x) || p(z)),       ELBO = -(reconstruction + KL)

All in nats, larger is stranger. Scores of one number of draws share their draws
(`likelihood.guide_terms`), so that reconstruction and KL by draw add up to the negative ELBO(K).
"""

from __future__ import annotations

from probgen.engine.measure import EvaluationContext, Function, changed_settings
from probgen.inference.likelihood.guide_terms import guide_terms, mean_of_draws
from probgen.inference.likelihood.importance import IWAE
from probgen.inference.likelihood.interval import Weighted, as_upper
from probgen.inference.ood.moments import check_guide
from probgen.language.declared import declaration
from probgen.language.kinds import Many


@declaration
class NegativeLogLikelihood(Weighted):
    """-log p(x), by the importance-weighted bound of K draws: an upper bound in expectation.

    In nats, larger is stranger. Gives the standard error (where an interval holds) and diagnostics
    of `IWAE`, whose weights it shares, and its bound turned: `upper_bound`.

    Assumes that what is foreign is improbable. Fails where foreign data are simpler than the
    training data, which then have a higher likelihood (SVHN under a model of CIFAR-10; black images
    under one of digits): the entropy of the test set drives the gap, arXiv:2109.10794. A density
    also changes under an invertible re-coding of the data, so that even the true one gives no
    invariant score, arXiv:2012.03808; the failure can be one of estimation, arXiv:2107.06908.

    Args:
        num_particles: K.
        particles_at_once: how many are drawn at a time, for memory.

    Raises (when bound): AlgorithmError: no guide, global latents, an unnormalised density.

    Source: Burda, Grosse & Salakhutdinov 2016, arXiv:1509.00519, for the bound.
    """

    num_particles: Many = 1000
    particles_at_once: Many = 25

    unit = "nats"
    larger_is_stranger = True
    of_bound = "upper"

    @property
    def name(self) -> str:
        return f"NegativeLogLikelihood({self.num_particles})"

    def bind_measure(self, context: EvaluationContext) -> Function:
        """(rows, ids) -> estimate, upper_bound, standard_error, effective_particles, khat."""
        check_guide(context.bound, self.name)
        function = context.function(IWAE(self.num_particles, self.particles_at_once))
        return lambda rows, ids: as_upper(function(rows, ids))


@declaration
class ReconstructionError:
    """-E_q log p(x | z), constants included: how badly a datum is rebuilt from its code.

    In nats, larger is stranger. Assumes that a decoder rebuilds only what it was trained on. Fails
    where foreign data are smooth or nearly constant, which any decoder rebuilds well, and, being
    the larger part of the likelihood, wherever that fails (arXiv:2109.10794); print it beside the
    likelihood.

    Args:
        num_particles: draws of z per datum; the standard error is over them (none for one draw).

    Raises (when bound): AlgorithmError: no guide, global latents, an unnormalised density.

    Source: the term of the bound in Kingma & Welling 2014, arXiv:1312.6114.
    """

    num_particles: Many = 16

    unit = "nats"
    larger_is_stranger = True

    @property
    def name(self) -> str:
        return f"ReconstructionError({self.num_particles})"

    def bind_measure(self, context: EvaluationContext) -> Function:
        """(rows, ids) -> estimate, standard_error."""
        check_guide(context.bound, self.name)
        terms = guide_terms(context, self.name, self.num_particles)
        return lambda rows, ids: mean_of_draws(-terms(rows, ids)["log_prob"])


@declaration
class KLTerm:
    """KL(q(z | x) || p(z)): how much a datum's code says, against the prior.

    In nats, larger is stranger. In closed form where one is known (two Gaussians), else by draws,
    as for a hierarchy, whose KL of the upper latents is a mean over the lower ones. Assumes that
    foreign data are encoded far from the prior. Fails where the encoder gives up on them and
    returns the prior, or where the posterior has collapsed, so that it is zero for every datum; on
    its own it misses what the decoder cannot rebuild (arXiv:2401.04933 takes both).

    Args:
        num_particles: draws of z per datum, for what has no closed form.
        analytic_kl: False estimates every KL by draws.

    Raises (when bound): AlgorithmError: no guide, global latents, an unnormalised density.

    Source: the term of the bound in Kingma & Welling 2014, arXiv:1312.6114.
    """

    num_particles: Many = 16
    analytic_kl: bool = True

    unit = "nats"
    larger_is_stranger = True

    @property
    def name(self) -> str:
        more = changed_settings(self, shown=("num_particles",))
        return f"KLTerm({', '.join([str(self.num_particles), *more])})"

    def bind_measure(self, context: EvaluationContext) -> Function:
        """(rows, ids) -> estimate, standard_error."""
        check_guide(context.bound, self.name)
        terms = guide_terms(context, self.name, self.num_particles)
        kind = "closed_kl" if self.analytic_kl else "kl"
        return lambda rows, ids: mean_of_draws(terms(rows, ids)[kind])
