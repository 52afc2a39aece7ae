"""Groups of optimisers: `probgen.optim.Groups` as one optimiser of a dict of nets' parameters."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from probgen.backends.protocol import Backend, Optimizer
from probgen.errors import AlgorithmError, UnknownName
from probgen.language.optim import stands_for
from probgen.language.wording import did_you_mean


def grouped(
    backend: Backend, parts: Mapping[str, Optimizer], known: Callable[[], Collection[str]]
) -> Optimizer:
    """One optimiser of several, each for the nets that its name stands for; "*" for all others.

    Args:
        backend: whose arrays they work on.
        parts: optimisers by the names of nets or of parts with several.
        known: gives the names of all nets that there are.

    Raises (by `init`):
        UnknownName: a name that stands for no net; AlgorithmError: a net that no name stands for.
    """
    names = [n for n in parts if n != "*"]

    def sort(tree: Mapping) -> dict[str, dict]:
        out: dict[str, dict] = {n: {} for n in parts}
        for net, leaf in tree.items():
            out[stands_for(names, net) or "*"][net] = leaf
        return out

    def check(nets: Collection[str]) -> None:
        every = known()
        for name in names:
            if not any(stands_for((name,), net) for net in every):
                raise UnknownName(
                    f"Groups: got an optimiser for {name!r}, expected the name of one of the nets "
                    f"{sorted(every)}, or of a part of them{did_you_mean(name, every)}."
                )
        left = sorted(n for n in nets if stands_for(names, n) is None)
        if left and "*" not in parts:
            raise AlgorithmError(
                f"Groups: got no optimiser for the nets {left}, expected one for each that is "
                "learned; name them, give rest=, or freeze them with fit(freeze=...)."
            )

    def init(params: Mapping) -> dict:
        check(list(params))
        return {
            "count": backend.asarray(0.0),
            "groups": {n: parts[n].init(tree) for n, tree in sort(params).items() if tree},
        }

    def update(grads: Mapping, state: Mapping, params: Mapping) -> tuple[dict, dict]:
        slopes, new, states = sort(grads), {}, {}
        for name, tree in sort(params).items():
            if tree:
                moved, states[name] = parts[name].update(slopes[name], state["groups"][name], tree)
                new.update(moved)
        return new, {"count": state["count"] + 1.0, "groups": states}

    return Optimizer(init, update)
