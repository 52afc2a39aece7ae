"""What a net keeps beside its weights: buffers, and the upkeep that follows an optimiser's step.

A buffer stands among the parameters, so that it is saved and resumed with them, and has no
gradient; an optimiser must leave it alone, weight decay included, and a moving average of it means
nothing. A net may say which of its parameters are buffers and how they move:

    buffers(params) -> [path, ...]        a path is a tuple of names, ("layer0", "u")
    after_update(params) -> params        after each step: a power iteration, a projection
    penalty(params) -> scalar             added to the loss, nats per datum: a prior of weights

A net that says neither of the first two has the buffers of the spectral norms in it, wherever they
stand, and their power iteration. `Bound.optimizer` is the one place that asks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from probgen.backends.protocol import Optimizer
from probgen.nets.base import Params
from probgen.nets.norms import is_spectral, power_iterate
from probgen.trees import tree_items

Path = tuple[str, ...]


def buffer_paths(net: Any, params: Params) -> frozenset[Path]:
    """Where the buffers stand in a net's parameters."""
    if hasattr(net, "buffers"):
        return frozenset(tuple(path) for path in net.buffers(params))
    return frozenset(
        path for path, _ in tree_items(params) if path[-1:] == ("u",) and _is_spectral(params, path)
    )


def _is_spectral(params: Params, path: Path) -> bool:
    node = params
    for name in path[:-1]:
        if not isinstance(node, dict):
            return False
        node = node[name]
    return is_spectral(node)


def has_upkeep(net: Any, params: Params) -> bool:
    """Whether an optimiser's step is not all that changes these parameters."""
    return hasattr(net, "after_update") or bool(buffer_paths(net, params))


def after_update(net: Any, params: Params) -> Params:
    """A net's parameters as they are after the optimiser's step."""
    return net.after_update(params) if hasattr(net, "after_update") else power_iterate(params)


def settle(net: Any, params: Params) -> Params:
    """Parameters with their spectral norms iterated to convergence; others as they are.

    One iteration a step follows the weights at a distance where two singular values are close.
    """
    return params if hasattr(net, "after_update") else power_iterate(params, 100)


def bare(nets: Mapping[str, Any], params: Mapping[str, Params]) -> dict[str, Params]:
    """What an optimiser moves: `params` by net's name, less the buffers of `nets`."""
    return {
        name: _without(tree, buffer_paths(nets[name], tree)) if name in nets else tree
        for name, tree in params.items()
    }


def kept_up(
    nets: Mapping[str, Any], moved: Mapping[str, Params], params: Mapping[str, Params]
) -> dict[str, Params]:
    """What `bare` left, moved, with the buffers of `params` put back and brought up to date."""
    full = {name: _together(tree, params[name]) for name, tree in moved.items()}
    return {name: after_update(nets[name], v) if name in nets else v for name, v in full.items()}


def keeping_up(optimizer: Optimizer, nets: Mapping[str, Any], compiled: Callable) -> Optimizer:
    """An optimiser of a dict of nets' parameters that leaves buffers alone and ends with upkeep.

    Args:
        optimizer: of the backend.
        nets: declarations by name, those of which `has_upkeep` is true; others pass through. Looked
            at when a step is made, so that nets may join.
        compiled: `Backend.compile`.
    """
    upkeep = compiled(lambda moved, params: kept_up(nets, moved, params))

    def init(params: Params) -> Any:
        return optimizer.init(bare(nets, params))

    def update(grads: Params, state: Any, params: Params) -> tuple[Params, Any]:
        if not any(name in nets for name in params):
            return optimizer.update(grads, state, params)
        moved, state = optimizer.update(bare(nets, grads), state, bare(nets, params))
        return upkeep(moved, params), state

    return Optimizer(init, update)


def _without(tree: Params, paths: Collection[Path], here: Path = ()) -> Params:
    if not isinstance(tree, dict) or not paths:
        return tree
    return {
        name: _without(child, paths, (*here, name))
        for name, child in tree.items()
        if (*here, name) not in paths
    }


def _together(tree: Params, full: Params) -> Params:
    if not isinstance(full, Mapping):
        return tree
    return {
        name: _together(tree[name], child) if name in tree else child
        for name, child in full.items()
    }
