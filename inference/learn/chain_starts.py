"""Where the chains of maximum likelihood start: anew, where they ended, or from a replay buffer.

    "base"                     draws of the model without its energy (in noise space: fresh noise)
    "data"                     the data of the batch
    ChainStart(data=0.2)       a share of each
    PersistentChains(...)      where the last update left them           Tieleman 2008
    ReplayBuffer(...)          some earlier ends                         Du & Mordatch 2019

What is kept is part of the state: of checkpoints, and of the `Fitted` that a fit goes on from.
Positions are those of the chain's space.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np

from probgen.engine.bound import Bound
from probgen.engine.target import Target
from probgen.errors import AlgorithmError, DeclarationError
from probgen.inference.learn.contrast import WHO, Contrast
from probgen.language.declared import declaration
from probgen.language.kinds import CountOrZero, Many, Share, Text, not_empty
from probgen.language.memory import ask

Array = Any
Tree = Any
SomeNames = Annotated[tuple[Text, ...], not_empty] | None
COUNTS = ("filled", "next", "updates")  # of a buffer: ends that it holds, where the next one goes


class Starts(NamedTuple):
    """Starts bound to a model and a target; `kept` is a dict of arrays, {} where nothing is kept.

    Attributes:
        own: (params, batch, key, extras) -> what is kept at first.
        start: (params, kept, batch, key, n) -> positions [n, *event].
        push: (kept, ends) -> what is kept then.
        renew: kept -> the same with all chains to start anew.
    """

    own: Callable
    start: Callable
    push: Callable = lambda kept, ends: kept
    renew: Callable = lambda kept: kept


@declaration
class ChainStart:
    """New chains: a share of them at data of the batch, the others at draws of the base.

    Args:
        data: the share; each chain is put at its datum with this probability.

    In data space only: the noise of a datum cannot be read off. Latents are drawn from the guide.
    """

    data: Share = 0.0

    def bind(self, bound: Bound, target: Target, contrast: Contrast, space: str) -> Starts:
        """The starts of a model's chains."""
        fresh = self.fresh(bound, target, contrast, space)
        return Starts(
            lambda params, batch, key, extras: {},
            lambda params, kept, batch, key, n: fresh(params, batch, key, n),
        )

    def fresh(self, bound: Bound, target: Target, contrast: Contrast, space: str) -> Callable:
        """(params, batch, key, n) -> positions."""
        b, ops = bound.backend, bound.backend.ops
        if not self.data:
            return target.init
        if space == "noise":
            raise AlgorithmError(
                f"{WHO}: got chains that start at data in space='noise', expected starts that are "
                "known there: noise cannot be read off a datum; use init='base' or "
                "ReplayBuffer(...), or space='data'."
            )
        if bound.latents and bound.model.guide is None:
            raise AlgorithmError(
                f"{WHO}: got chains that start at data, and the latents {list(bound.latents)} of "
                f"{bound.model.name!r}, which data do not give, expected a guide that draws them; "
                "use init='base'."
            )

        def at_data(params: Mapping, batch: Mapping, key: Any, n: int) -> dict[str, Array]:
            seen = {m: batch[m] for m in bound.observed}
            values = {**seen, **contrast.latents(params, batch, key)}
            x = target.enter(values, params, batch)
            # On the edge of a support a datum is infinite on the real line.
            return {m: ops.where(ops.isfinite(u), u, 0.0) for m, u in x.items()}

        if self.data == 1.0:
            return at_data

        def mixed(params: Mapping, batch: Mapping, key: Any, n: int) -> dict[str, Array]:
            k_data, k_base, k_which = b.split(key, 3)
            is_data = b.uniform(k_which, (n,)) < self.data
            one, other = at_data(params, batch, k_data, n), target.init(params, batch, k_base, n)
            return choose(b, is_data, one, other)

        return mixed


def first_ends(b: Any, fresh: Callable, params: Mapping, batch: Mapping, key: Any) -> Tree:
    """`fresh` starts of a batch as one program: by itself each operation would be compiled."""
    run = b.compile(lambda params, batch, key: fresh(params, batch, key, size_of(batch)), 1)
    return run(dict(params), dict(batch), key)


@declaration
class PersistentChains:
    """As many chains as a batch has data, each going on where the last update left it.

    Args:
        refresh: the share that starts anew at each update.
        fresh: where those start: "base", "data" or a `ChainStart`.

    Source: Tieleman 2008 (persistent contrastive divergence).
    """

    refresh: Share = 0.05
    fresh: Literal["base", "data"] | ChainStart = "base"

    def bind(self, bound: Bound, target: Target, contrast: Contrast, space: str) -> Starts:
        """The starts of a model's chains."""
        b = bound.backend
        fresh = as_start(self.fresh).fresh(bound, target, contrast, space)

        def own(params: Mapping, batch: Mapping, key: Any, extras: Any) -> dict:
            require_no_inputs(contrast, batch, self)
            x = first_ends(b, fresh, params, batch, key)
            # `is_known` is 0 where all are to start anew.
            kept = {"chains": x, "is_known": np.ones((), np.float32)}
            return {n: bound.kept(n, v, extras) for n, v in kept.items()}

        def start(params: Mapping, kept: Mapping, batch: Mapping, key: Any, n: int) -> Tree:
            k_new, k_which = b.split(key, 2)
            stays = b.uniform(k_which, (n,)) >= self.refresh + 1.0 - kept["is_known"]
            return choose(b, stays, kept["chains"], fresh(params, batch, k_new, n))

        def push(kept: Mapping, ends: Tree) -> dict:
            return {"chains": ends, "is_known": kept["is_known"] * 0.0 + 1.0}

        return Starts(own, start, push, lambda k: {**k, "is_known": k["is_known"] * 0.0})


@declaration
class ReplayBuffer:
    """Chains start at random earlier ends, the last `size` of them, first in, first out.

    A chain starts from the buffer with probability p, else anew,

        p = (1 - refresh) min(1, updates / anneal)

    Args:
        size: how many ends are kept; at least a batch.
        refresh: the share of new chains in the end.
        anneal: updates over which p rises from 0; 0: none.
        fresh: where new chains start: "base", "data" or a `ChainStart`.
        sites: those that the buffer holds, the others start anew; None: all that move.

    Sources: Du & Mordatch 2019, arXiv:1903.08689; Xiao et al. 2021, arXiv:2010.00654 (VAEBM: size
    10,000, refresh 0.4, anneal 5,000, the latents alone).
    """

    size: Many = 10_000
    refresh: Share = 0.05
    anneal: CountOrZero = 0
    fresh: Literal["base", "data"] | ChainStart = "base"
    sites: SomeNames = dataclasses.field(default=None, kw_only=True)

    def bind(self, bound: Bound, target: Target, contrast: Contrast, space: str) -> Starts:
        """The starts of a model's chains."""
        b, ops = bound.backend, bound.backend.ops
        fresh = as_start(self.fresh).fresh(bound, target, contrast, space)
        names = self._names(target)

        def own(params: Mapping, batch: Mapping, key: Any, extras: Any) -> dict:
            require_no_inputs(contrast, batch, self)
            self._require_size(size_of(batch))
            one = {n: v[:1] for n, v in first_ends(b, fresh, params, batch, key).items()}
            numbers = sum(int(np.prod(one[n].shape)) for n in names)
            where = f"ReplayBuffer({self.size:,})"
            ask(where, 8 * self.size * numbers, "keep fewer ends", DeclarationError)
            held = {
                n: b.asarray(np.zeros((self.size, *one[n].shape[1:]), np.float32)) for n in names
            }
            fresh_buffer = {"ends": held, **{n: np.zeros((), np.int32) for n in COUNTS}}
            return {"buffer": bound.kept("buffer", fresh_buffer, extras)}

        def start(params: Mapping, kept: Mapping, batch: Mapping, key: Any, n: int) -> Tree:
            held = kept["buffer"]
            k_new, k_which, k_index = b.split(key, 3)
            new = fresh(params, batch, k_new, n)
            filled, updates = (ops.cast(held[m], "float32") for m in ("filled", "updates"))
            at = ops.minimum(b.uniform(k_index, (n,)) * filled, ops.maximum(filled - 1.0, 0.0))
            old = {m: ops.take(held["ends"][m], ops.cast(at, "int64")) for m in names}
            rise = ops.minimum(updates / self.anneal, 1.0) if self.anneal else 1.0
            p = ops.where(filled > 0, (1.0 - self.refresh) * rise, 0.0)
            is_old = b.uniform(k_which, (n,)) < p
            return {**new, **choose(b, is_old, old, {m: new[m] for m in names})}

        def push(kept: Mapping, ends: Tree) -> dict:
            held, n = kept["buffer"], size_of(ends)
            at = ops.cast(ops.arange_like(n, ends[names[0]]), "int32") + held["next"]
            index = ops.cast(at % self.size, "int64")
            counts = {
                "filled": ops.minimum(held["filled"] + n, self.size),
                "next": (held["next"] + n) % self.size,
                "updates": held["updates"] + 1,
            }
            moved = {m: ops.put(held["ends"][m], index, ends[m]) for m in names}
            return {
                "buffer": {"ends": moved} | {m: ops.cast(v, "int32") for m, v in counts.items()}
            }

        def renew(kept: Mapping) -> dict:
            held = kept["buffer"]
            return {"buffer": {**held, "filled": held["filled"] * 0, "next": held["next"] * 0}}

        return Starts(own, start, push, renew)

    def _names(self, target: Target) -> tuple[str, ...]:
        names = target.names if self.sites is None else self.sites
        if unknown := sorted(set(names) - set(target.names)):
            raise AlgorithmError(
                f"ReplayBuffer: got the sites {unknown}, expected some of {sorted(target.names)}, "
                "which move."
            )
        return tuple(names)

    def _require_size(self, n: int) -> None:
        if n > self.size:
            raise AlgorithmError(
                f"ReplayBuffer: got size={self.size} for batches of {n}, whose ends all go in, "
                f"expected at least {n}; raise it, or lower batch_size."
            )


AnyStart = Literal["base", "data"] | ChainStart | PersistentChains | ReplayBuffer


def as_start(given: AnyStart) -> Any:
    """A declaration of starts; a word stands for one."""
    return ChainStart(float(given == "data")) if isinstance(given, str) else given


def choose(backend: Any, is_first: Array, first: Tree, second: Tree) -> Tree:
    """Rows of `first` where `is_first` [n], else of `second`."""
    ops = backend.ops

    def one(a: Array, c: Array) -> Array:
        return ops.where(ops.reshape(is_first, (a.shape[0], *([1] * (a.ndim - 1)))), a, c)

    return backend.tree_map(one, first, second)


def size_of(batch: Mapping) -> int:
    """How many data a batch has."""
    return next(iter(batch.values())).shape[0]


def require_no_inputs(contrast: Contrast, batch: Mapping, init: Any) -> None:
    """Refuses kept chains under inputs that differ from datum to datum."""
    inputs = sorted(contrast.inputs(batch))
    if inputs:
        raise AlgorithmError(
            f"{WHO}: got init={type(init).__name__} and the inputs {inputs} with one row "
            "a datum, expected chains that belong to no datum: they would go on under the "
            "inputs of other data; use init='base' or init='data'."
        )
