"""Whole data sets by a program's posterior draws: what would be seen at these inputs?

    theta_s ~ p(theta | data),    y_s ~ p(y | theta_s, inputs),    s = 1 ... num_samples

Globals are the draws'; latents inside the data plate are those of new data, and are drawn anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from probgen.backends.protocol import Backend
from probgen.engine.bind import bind
from probgen.engine.bound import Bound
from probgen.engine.draws import latents_of
from probgen.engine.fitted import Fitted
from probgen.errors import AlgorithmError, DeclarationError
from probgen.language.memory import ask


def data_sets(
    fitted: Fitted, b: Backend, draws: Any, num_samples: int, num_data: int | None,
    inputs: Mapping[str, Any], key: Any, seed: int,
) -> tuple[dict[str, np.ndarray], Any]:  # fmt: skip
    """({site: [num_samples, *plates, *event]}, the bound model).

    Args:
        draws: what `pg.infer` returned, or globals by name, [chain, draw, ...].
        num_samples: how many of them, evenly spread over each chain.
        num_data: size of the data plate where no input tells it.
        inputs: all of them, as `infer` takes them.
    """
    constants = {**fitted.constants, **inputs}
    bound, params = bind(
        fitted.model, b, data={}, constants=constants, params=fitted.params, seed=seed, whole=True,
        num_data=num_data,
    )  # fmt: skip
    require_params(bound, fitted.params, "generate")
    # One that was summed out has no draws here: as the prior's it would be of another posterior.
    hidden = (*bound.latents, *bound.enumerated)
    shared = tuple(n for n in hidden if not bound.structure.sites[n].is_local)
    bound.require_normalized("generate")
    known = latents_of(bound.model.name, shared, draws, None, "generate")
    if not known:
        raise AlgorithmError(
            f"generate: got draws, but {fitted.model.name!r} has no latents outside the data plate "
            "that they could give, expected globals to predict from; leave draws out."
        )
    flat = {n: v.reshape(-1, *v.shape[2:]) for n, v in known.items()}
    total = len(next(iter(flat.values())))
    if num_samples > total:
        raise AlgorithmError(
            f"generate: got num_samples={num_samples} for {total} draws, expected at most as many; "
            "infer more, or ask for fewer."
        )
    size = bound.num_rows or 1
    cure = "ask for fewer data sets, or for smaller ones"
    numbers = 8 * bound.structure.count(size) * num_samples
    ask(f"generate: {num_samples} sets of {size} data", numbers, cure, DeclarationError)
    index = np.linspace(0, total - 1, num_samples).round().astype(np.int64)
    placed = {k: b.asarray(v) for k, v in constants.items() if isinstance(v, np.ndarray)}

    def run(params: Any, placed: Any, values: Any, keys: Any) -> Any:
        def step(carry: Any, x: Any) -> tuple[Any, Any]:
            held, key = x
            sites = bound.trace(
                params, placed, held, key=key, batch_size=bound.num_rows, condition=False
            )
            return carry, {n: s.value for n, s in sites.items() if s.kind != "factor"}

        return b.scan(step, b.asarray(np.zeros((), np.float32)), (values, keys))[1]

    held = {n: b.asarray(v[index]) for n, v in flat.items()}
    out = b.compile(run, over="steps")(params, placed, held, b.split(key, num_samples))
    return {n: b.to_numpy(v) for n, v in out.items()}, bound


def require_params(bound: Bound, params: Any, who: str) -> None:
    """Refuses a program with nets that nobody fitted.

    Raises:
        AlgorithmError: names them.
    """
    known = {*bound.model.fitted_params(), *(params or {})}
    missing = sorted(set(bound.structure.nets) - known)
    if missing:
        raise AlgorithmError(
            f"{who}: the nets {missing} of {bound.model.name!r} have no parameters, expected "
            f"fitted ones; give {who} what pg.fit returns, or declare the weights as latents."
        )
