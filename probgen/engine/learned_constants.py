"""Whether a density's constant is learned, which what leaves log Z out must not allow.

What log Z depends on is found by experiment (`probgen.engine.dependence`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from probgen.engine.bound import Bound
from probgen.engine.dependence import ROWS, Experiment
from probgen.errors import AlgorithmError


def require_fixed_constant(bound: Bound, params: Mapping, batch: Mapping, who: str) -> None:
    """Refuses parameters that log Z depends on, where log Z is left out of what is maximised.

    With factors f, the density is p(x, z) = p~(x, z) / Z, p~ = prod_s p(s | parents) prod f, and

        E_q[log p~(x, z) - log q(z)] <= log p(x) + log Z

    is a bound on log p(x) up to a constant only where log Z is one. Every site that no factor
    follows from integrates to one, so

        Z = E[prod f],    the sites that the factors read drawn from the program,

    and log Z depends on just those nets that reach a factor: its own, and those of the law of a
    site, observed or not, that it reads, or that such a site follows from. The guide's nets and
    those of what comes after (a decoder behind a prior with a factor) never do. A factor that reads
    no site at all is a penalty on the parameters, a log prior say, and is left to its user. A site
    whose own density does not integrate to one counts as such a factor.

    Args:
        batch: some data, for programs that take inputs.
        who: the algorithm, for the message.

    Raises:
        AlgorithmError: names the factor, the nets, and what teaches them.
    """
    frozen = bound.frozen()
    trainable = [n for n in bound.structure.nets if n not in frozen]
    improper = bound.structure.improper
    if not (bound.structure.factors or improper) or not trainable:
        return
    samples = {n for n, s in bound.structure.sites.items() if s.kind == "sample"}
    for factor, reach in _before_factors(bound, params, batch).items():
        learned = [n for n in trainable if n in reach]
        if learned and (samples & reach or factor in improper):
            what = "density of" if factor in improper else "factor"
            raise AlgorithmError(
                f"{who}: log Z of {bound.model.name!r}, which carries the {what} {factor!r}, "
                f"depends on the trainable nets {learned}, expected a constant: without it the "
                "bound grows for ever and teaches nothing. MaximumLikelihood(Langevin(...)) learns "
                "an energy from data, and with bound=ELBO() encoder and decoder with it; or fit "
                "that part by itself first and build on the Fitted, whose nets are frozen, or "
                "declare its distribution by pg.sample."
            )


def sites_of_constant(bound: Bound, params: Mapping, batch: Mapping) -> frozenset[str]:
    """Sample sites whose laws log Z depends on: those that a factor reads, and what they follow
    from. All others integrate to one, whatever these are."""
    samples = {n for n, s in bound.structure.sites.items() if s.kind == "sample"}
    reach = _before_factors(bound, params, batch)
    return frozenset(samples & set(reach).union(*reach.values()))


def _before_factors(bound: Bound, params: Mapping, batch: Mapping) -> dict[str, set[str]]:
    """Of each factor, or site of no constant, all sites, nets and inputs that it follows from."""
    rows = _resized(bound, batch)
    parents: dict[str, set[str]] = {}
    for source, target in Experiment(bound, params, rows, is_thorough=True).edges():
        parents.setdefault(target, set()).add(source)
    factors = [*bound.structure.factors, *bound.structure.improper]
    return {factor: _ancestors(factor, parents) for factor in factors}


def require_contrast(
    bound: Bound, params: Mapping, batch: Mapping, left: Collection[str], who: str
) -> None:
    """Refuses parameters that a contrast of data with the model's draws would learn wrongly.

    With p = p~ / Z the gradient E_data[grad log p~] - E_model[grad log p~] is that of the
    likelihood if all of p~ is contrasted and where p~ > 0 does not move with the parameters: else

        grad log Z = E_model[grad log p~] + (what flows over the moving edge),

    and the second term is no mean over draws. Where latents are left only the factors are
    contrasted, so that no law of the base may be learned, by a net that it shares with a factor
    either.

    Args:
        batch: some data, for programs that take inputs.
        left: sample sites that the contrast leaves out.
        who: the algorithm, for the message.

    Raises:
        AlgorithmError: names the site, the nets, and what to do.
    """
    frozen = bound.frozen()
    trainable = [n for n in bound.structure.nets if n not in frozen]
    tried = Experiment(bound, params, _resized(bound, batch), is_thorough=True)
    for net in trainable:
        laws = tried.laws(net) if left else set()
        moving = tried.moving_supports(net)
        for site, info in bound.structure.sites.items():
            if info.kind != "sample" or info.is_fixed:
                continue
            if site in left and site in laws:
                raise AlgorithmError(
                    f"{who}: the law of site {site!r} reads the net {net!r}, which is not frozen, "
                    f"but of {bound.model.name!r} the factors alone are contrasted, so that what "
                    "the base says of it would be missing from the gradient, expected a fitted "
                    "base; fit it first and build on the Fitted, whose nets are frozen, such as "
                    "Tilted(fitted, energy=...), and give the energy a net of its own; or learn "
                    "all of them at once where there is a guide, by bound=ELBO()."
                )
            if site in moving:
                raise AlgorithmError(
                    f"{who}: the support of site {site!r} ({info.family}) ends where the net "
                    f"{net!r} says, which is not frozen, expected a support that does not move "
                    "with what is learned: the gradient lacks what flows over the edge; fit the "
                    "base first and build on the Fitted, whose nets are frozen, or give constant "
                    "bounds."
                )


def _resized(bound: Bound, batch: Mapping) -> dict[str, np.ndarray]:
    rows = {k: np.asarray(bound.backend.to_numpy(v)) for k, v in batch.items()}
    return {k: np.resize(v, (ROWS, *v.shape[1:])) for k, v in rows.items()}


def _ancestors(name: str, parents: Mapping[str, set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = [name]
    while waiting:
        new = parents.get(waiting.pop(), set()) - found
        found |= new
        waiting += new
    return found
