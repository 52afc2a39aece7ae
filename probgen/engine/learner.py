"""What an algorithm that learns is to the driver: pure functions and what goes with them.

    init(params, key, batch, extras) -> state     update(state, batch, key) -> (state, metrics)

The state is a tree of arrays that holds all that must survive a crash: `state["params"]` (the
trainable parameters), `state["frozen"]`, the optimiser, controllers, chains, a critic. Metrics are
named arrays, nats unless the name says otherwise: scalars, or vectors such as a KL per latent unit.
`Bound.start` and `Bound.step` make and move the state; `GradientLearner` is the learner of a loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple, Protocol

from probgen.engine.bound import Bound
from probgen.language.kinds import having

Tree = Any


class Judge(NamedTuple):
    """How a learner tells good states from bad ones by its held-out metrics; see `engine.best`.

    Attributes:
        criterion: its name.
        value: held-out metrics -> a number, larger is better; None where it is not to be trusted.
        watch: (held-out metrics, the best value) -> None, or a sentence that says what went wrong:
            the fit then goes back to the best state.
    """

    criterion: str
    value: Callable[[Mapping[str, float]], float | None]
    watch: Callable[[Mapping[str, float], float], str | None]


class Learner(NamedTuple):
    """An algorithm bound to a model.

    Attributes:
        init, update: see above; `extras` are those of the `Fitted` that the fit goes on from, on
            the backend, or None.
        evaluate: (params, batch, key) -> metrics on held-out data, means over the batch; or None.
        report: (params, batch, key, history) -> an object with `text()` at the end of a fit; or
            None.
        cures: metric -> what to do where it is NaN or infinite, in words, when lowering the
            learning rate is not all.
        note: a sentence about what the metrics mean, which the history keeps; or None.
        watch: metrics of a chunk, numpy [steps, ...] -> None, or a sentence that says what went
            wrong: the fit then goes back and lowers its step as at a NaN. Runs on the host.
        extras: state -> a tree of dicts of what the algorithm has beside the model (a critic, a
            student's score, chains), kept in `Fitted.extras`.
        needs_rows: batches have the numbers of their rows in the data under `pg.ROW`, the name by
            which guides with parameters for each datum get them too.
        needs_data: False for an algorithm that can do without data; its batches are then empty and
            `bound.num_draws` says how many draws are asked for.
        judge: by which the best state is kept and returned, where there are held-out data; or None.
        renew: state -> the state with chains that start anew, when a fit goes back; or None.
        can_average: False where a moving average of the parameters is none of what is learned.
        remarks: metrics of a chunk, or held-out ones -> sentences by name about what is not as it
            should be; the history keeps the first of each name, and the log says it.
    """

    init: Callable[[Tree, Any, Tree, Tree], Tree]
    update: Callable[[Tree, Tree, Any], tuple[Tree, dict]]
    evaluate: Callable[[Tree, Tree, Any], dict] | None = None
    report: Callable[[Tree, Tree, Any, Any], Any] | None = None
    cures: Mapping[str, str] | None = None
    note: str | None = None
    watch: Callable[[dict], str | None] | None = None
    extras: Callable[[Tree], Tree] | None = None
    needs_rows: bool = False
    needs_data: bool = True
    judge: Judge | None = None
    renew: Callable[[Tree], Tree] | None = None
    remarks: Callable[[Mapping], dict[str, str]] | None = None
    can_average: bool = True


class Algorithm(Protocol):
    """Anything with `bind(bound) -> Learner`; refuses there what does not fit the model."""

    def bind(self, bound: Bound) -> Learner: ...


def all_params(state: Tree) -> dict:
    """Trainable and frozen parameters of a learner's state as one dict."""
    return {**state["params"], **state.get("frozen", {})}


AnyAlgorithm = Annotated[
    Algorithm, having("an algorithm such as SVI(ELBO(), pg.Adam(1e-3))", "bind")
]
