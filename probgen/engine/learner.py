"""What an algorithm that learns is to the driver: a pair of pure functions and what goes with them.

    init(params, key, batch) -> state           update(state, batch, key) -> (state, metrics)

The state is a tree of arrays that holds all that must survive a crash: `state["params"]` (the
trainable parameters), `state["frozen"]`, the optimiser, controllers, persistent chains. Metrics are
named arrays, nats unless the name says otherwise: scalars, or vectors such as a KL per latent unit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple, Protocol

from probgen.engine.bound import Bound
from probgen.language.kinds import having

Tree = Any


class Learner(NamedTuple):
    """An algorithm bound to a model.

    Attributes:
        init, update: see above.
        evaluate: (params, batch, key) -> metrics on held-out data, means over the batch; or None.
        report: (params, batch, key, history) -> an object with `text()` at the end of a fit; or
            None.
        cures: metric -> what to do where it is NaN or infinite, in words, when lowering the
            learning rate is not all.
        note: a sentence about what the metrics mean, which the history keeps; or None.
    """

    init: Callable[[Tree, Any, Tree], Tree]
    update: Callable[[Tree, Tree, Any], tuple[Tree, dict]]
    evaluate: Callable[[Tree, Tree, Any], dict] | None = None
    report: Callable[[Tree, Tree, Any, Any], Any] | None = None
    cures: Mapping[str, str] | None = None
    note: str | None = None


class Algorithm(Protocol):
    """Anything with `bind(bound) -> Learner`; refuses there what does not fit the model."""

    def bind(self, bound: Bound) -> Learner: ...


def all_params(state: Tree) -> dict:
    """Trainable and frozen parameters of a learner's state as one dict."""
    return {**state["params"], **state.get("frozen", {})}


AnyAlgorithm = Annotated[
    Algorithm, having("an algorithm such as SVI(ELBO(), pg.Adam(1e-3))", "bind")
]
