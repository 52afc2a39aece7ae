"""Bring your own: a module of torch, flax or equinox as a declaration with `init` and `apply`.

Parameters come out as nested dicts of numpy arrays, and go back into the module at `apply`. Such a
net runs on its own framework only, keeps its own weight layout, and takes part in every algorithm;
`save_pretrained` stores its weights, and loading asks for the module again. Each function imports
its framework when called.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import numpy as np

from probgen.errors import DeclarationError, ShapeError
from probgen.language import ops
from probgen.language.declared import declaration
from probgen.language.identity import Form
from probgen.language.kinds import Axes, having
from probgen.nets.base import Array, EventAxes, Key, Params, Shape
from probgen.trees import tree_items, tree_map


def from_torch(module: Any, in_ndim: int | tuple[int, ...] | None = None) -> TorchNet:
    """A `torch.nn.Module` as a net, called through `torch.func.functional_call`.

    Args:
        module: its weights are the initial ones, so `init` ignores the key; a layout such as
            channel-first images is the module's own affair. Buffers stay constant.
        in_ndim: event axes of every input or of each; with it any number of leading axes is
            flattened to the single batch axis that most modules expect, and restored. None passes
            inputs as they are.

    Raises:
        DeclarationError: the module uses batch statistics. A module that draws numbers, such as
            Dropout in training mode, or that changes its own buffers is refused when a model with
            it is bound, since that shows only when it runs.
    """
    net = TorchNet(module, in_ndim)
    for name, child in module.named_modules():
        follows = getattr(child, "track_running_stats", None)
        never = follows is False and "BatchNorm" in str(type(child))
        if never or (child.training and follows):
            how = "that keeps no running statistics" if never else "in training mode"
            cure = "track_running_stats=True" if never else "module.eval() to freeze them"
            raise DeclarationError(
                f"from_torch: got {type(child).__name__} {name!r} {how}, expected no statistics "
                "of the batch, since each datum's output must be its own; use a group norm, or "
                f"{cure}."
            )
    return net


def from_flax(module: Any, in_ndim: int | tuple[int, ...] | None = None) -> FlaxNet | NnxNet:
    """A `flax.linen.Module` or a `flax.nnx.Module` as a net.

    Args:
        module: a linen module whose only variables are "params"; or an nnx module, whose
            `nnx.Param` are the initial parameters, so that `init` ignores the key, and which has no
            other state (no batch statistics, no stream of random numbers).
        in_ndim: as in `from_torch`.
    """
    is_nnx = any(cls.__module__.startswith("flax.nnx") for cls in type(module).__mro__)
    return NnxNet(module, in_ndim) if is_nnx else FlaxNet(module, in_ndim)


def from_equinox(module: Any, in_ndim: int | tuple[int, ...]) -> EquinoxNet:
    """An `equinox.Module`, a function of one datum, as a net: vmapped over leading axes.

    Args:
        module: its inexact arrays are the initial parameters, so `init` ignores the key.
        in_ndim: event axes of every input or of each.
    """
    return EquinoxNet(module, in_ndim)


@declaration(eq=False)
class TorchNet:
    """See `from_torch`."""

    module: Annotated[Any, having("a torch.nn.Module", "named_parameters", "named_buffers")]
    in_ndim: EventAxes = None
    framework: ClassVar = "torch"

    def init(self, key: Key, *shapes: Shape) -> Params:
        weights = {name: p.detach().cpu().numpy() for name, p in self.module.named_parameters()}
        return nested({tuple(name.split(".")): np.array(w) for name, w in weights.items()})

    def apply(self, params: Params, *inputs: Array) -> Any:
        return with_one_batch_axis(lambda *xs: self.call(params, *xs), inputs, self.in_ndim)

    def call(self, params: Params, *inputs: Array, **options: Any) -> Any:
        """The module's own output for these parameters; inputs and options as it takes them."""
        from torch.func import functional_call

        weights = {".".join(path): leaf for path, leaf in tree_items(params)}
        device = next((w.device for w in weights.values()), None)
        for name, buffer in self.module.named_buffers():
            weights[name] = buffer if device is None else buffer.to(device)
        return functional_call(self.module, weights, inputs, options)

    def __identity__(self) -> dict[str, Any]:
        """Settings and buffers; the fit's parameters take the place of the module's."""
        given = tuple(self.module.parameters())
        return {"module": Form(self.module, given), "in_ndim": self.in_ndim}

    def check(self, params: Params, *inputs: Array) -> None:
        """Runs the module once, and refuses one that does more than compute its output."""
        require_pure(self.module, lambda: self.apply(params, *inputs))


@declaration(eq=False)
class FlaxNet:
    """See `from_flax`."""

    module: Annotated[Any, having("a flax.linen.Module", "init", "apply")]
    in_ndim: EventAxes = None
    framework: ClassVar = "jax"

    def init(self, key: Key, *shapes: Shape) -> Params:
        import jax

        seed = int(key.integers(2**31))
        inputs = [np.zeros((1, *shape), np.float32) for shape in shapes]
        # A model is bound inside a trace; weights are numbers all the same.
        with jax.ensure_compile_time_eval():
            variables = self.module.init(jax.random.key(seed), *inputs)
        if set(variables) - {"params"}:
            raise DeclarationError(
                f"from_flax: got variables {sorted(variables)}, expected only 'params': `apply` is "
                "pure; use a group norm in place of batch statistics."
            )
        return tree_map(np.asarray, dict(variables.get("params", {})))

    def apply(self, params: Params, *inputs: Array) -> Any:
        return with_one_batch_axis(
            lambda *xs: self.module.apply({"params": params}, *xs), inputs, self.in_ndim
        )

    def check(self, params: Params, *inputs: Array) -> None:
        """Refuses a module that draws numbers, with a DeclarationError."""
        from flax.errors import InvalidRngError

        try:
            self.apply(params, *inputs)
        except InvalidRngError as error:
            raise _draws("from_flax", "deterministic=True", error) from error


@declaration(eq=False)
class NnxNet:
    """See `from_flax`."""

    module: Annotated[Any, having("a flax.nnx.Module", "__call__")]
    in_ndim: EventAxes = None
    framework: ClassVar = "jax"

    def _parts(self) -> tuple[Any, Any]:
        """(what the module is, its parameters as a nested dict of `nnx.Param`)."""
        from flax import nnx

        graph, params, rest = nnx.split(self.module, nnx.Param, ...)
        if nnx.to_flat_state(rest):
            kinds = sorted({type(v).__name__ for _, v in nnx.to_flat_state(rest)})
            raise DeclarationError(
                f"from_flax: got an nnx module with {', '.join(kinds)} beside nnx.Param, expected "
                "parameters alone: `apply` is pure; use a group norm in place of batch statistics, "
                "and draw with pg.sample in place of Dropout."
            )
        return graph, params

    def init(self, key: Key, *shapes: Shape) -> Params:
        from flax import nnx

        pure = nnx.to_pure_dict(self._parts()[1])
        return nested({tuple(map(str, path)): np.asarray(x) for path, x in tree_items(pure)})

    def apply(self, params: Params, *inputs: Array) -> Any:
        from flax import nnx

        graph, own = self._parts()
        weights = dict(tree_items(params))
        leaves = [
            (path, leaf.replace(weights[tuple(map(str, path))]))
            for path, leaf in nnx.to_flat_state(own)
        ]
        module = nnx.merge(graph, nnx.from_flat_state(leaves))
        return with_one_batch_axis(module, inputs, self.in_ndim)


@declaration(eq=False)
class EquinoxNet:
    """See `from_equinox`."""

    module: Annotated[Any, having("an equinox.Module, a function of one datum", "__call__")]
    in_ndim: Axes | tuple[Axes, ...]
    framework: ClassVar = "jax"

    def init(self, key: Key, *shapes: Shape) -> Params:
        import equinox
        import jax

        arrays = equinox.filter(self.module, equinox.is_inexact_array)
        leaves = jax.tree_util.tree_flatten_with_path(arrays)[0]
        return nested({_names(path): np.asarray(leaf) for path, leaf in leaves})

    def apply(self, params: Params, *inputs: Array) -> Any:
        import equinox
        import jax

        own, rest = equinox.partition(self.module, equinox.is_inexact_array)
        paths = [_names(path) for path, _ in jax.tree_util.tree_flatten_with_path(own)[0]]
        weights = dict(tree_items(params))
        leaves = [jax.numpy.asarray(weights[path]) for path in paths]
        treedef = jax.tree_util.tree_structure(own)
        module = equinox.combine(jax.tree_util.tree_unflatten(treedef, leaves), rest)
        arrays = tuple(jax.numpy.asarray(x) for x in inputs)
        return with_one_batch_axis(jax.vmap(module), arrays, self.in_ndim)

    def check(self, params: Params, *inputs: Array) -> None:
        """Refuses a module that asks for a key, with a DeclarationError."""
        try:
            self.apply(params, *inputs)
        except RuntimeError as error:
            if "key" not in str(error):
                raise
            raise _draws("from_equinox", "eqx.nn.inference_mode(module)", error) from error


def require_pure(module: Any, run: Callable[[], Any]) -> None:
    """Calls `run`, and refuses a torch module that does more in it than compute its output.

    Raises:
        DeclarationError: it drew from torch's generator, or changed a buffer; or it computes parts
            of itself again for the gradient, when it has its own weights and not those of the call.
    """
    import torch

    again = [n for n, m in module.named_modules() if getattr(m, "gradient_checkpointing", False)]
    if again:
        raise DeclarationError(
            f"from_torch: got a {type(module).__name__} with gradient checkpointing in {again}, "
            "expected none: on the way back it would compute with the module's own weights in "
            "place of those being fitted; call module.disable_gradient_checkpointing() or "
            "module.gradient_checkpointing_disable() first."
        )

    def state() -> list[Any]:
        random = [torch.get_rng_state()]
        if torch.cuda.is_initialized():
            random += torch.cuda.get_rng_state_all()
        return [random, {n: b.clone() for n, b in module.named_buffers()}]

    random, buffers = state()
    run()
    random_after, buffers_after = state()
    trained = [n for n, m in module.named_modules() if m.training and "Drop" in str(type(m))]
    if not all(torch.equal(a, b) for a, b in zip(random, random_after, strict=True)):
        raise DeclarationError(
            f"from_torch: got a {type(module).__name__} that draws random numbers"
            f"{f' (in training mode: {trained})' if trained else ''}, expected a function of "
            "its parameters and inputs, since one seed must give one result; call "
            "module.eval() first, which switches Dropout off, or draw with pg.sample."
        )
    changed = [n for n, b in buffers.items() if not torch.equal(b, buffers_after[n])]
    if changed:
        raise DeclarationError(
            f"from_torch: got a {type(module).__name__} that changes its buffers "
            f"{changed} when it runs, expected a function of its parameters and inputs; call "
            "module.eval() first, or use a net of probgen.nets (SpectralNorm, GroupNorm)."
        )


def _draws(who: str, cure: str, error: Exception) -> DeclarationError:
    return DeclarationError(
        f"{who}: got a module that draws random numbers ({error}), expected a function of its "
        f"parameters and inputs, since one seed must give one result; switch that off with {cure}, "
        "or draw with pg.sample."
    )


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
    """A jax key path as text: attribute names, dict keys, positions."""
    return tuple(
        str(next(getattr(k, a) for a in ("name", "key", "idx") if hasattr(k, a))) for k in path
    )


def nested(flat: dict[tuple[str, ...], Any]) -> Params:
    """{("a", "b"): x} -> {"a": {"b": x}}."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = leaf
    return tree


def with_one_batch_axis(
    fn: Any, inputs: tuple[Array, ...], in_ndim: int | tuple[int, ...] | None
) -> Any:
    """fn on inputs [n, *event] for inputs [*lead, *event]; outputs get the leading axes back.

    Leading axes broadcast, as when one of several inputs has particles.

    Raises:
        ShapeError: they do not.
    """
    if in_ndim is None:
        return fn(*inputs)
    lead = common_lead(inputs, in_ndim)
    ndims = (in_ndim,) * len(inputs) if isinstance(in_ndim, int) else in_ndim
    events = [tuple(x.shape[len(x.shape) - n :]) for x, n in zip(inputs, ndims, strict=True)]
    same = [x if tuple(x.shape) == (*lead, *e) else ops.broadcast_to(x, (*lead, *e))
            for x, e in zip(inputs, events, strict=True)]  # fmt: skip
    flat = [ops.reshape(x, (math.prod(lead), *e)) for x, e in zip(same, events, strict=True)]
    return tree_map(lambda y: ops.reshape(y, (*lead, *y.shape[1:])), fn(*flat))


def common_lead(inputs: tuple[Array, ...], in_ndim: int | tuple[int, ...]) -> tuple[int, ...]:
    """The leading axes of inputs [*lead, *event], broadcast.

    Raises:
        ShapeError: they do not broadcast.
    """
    ndims = (in_ndim,) * len(inputs) if isinstance(in_ndim, int) else in_ndim
    leads = [tuple(x.shape[: len(x.shape) - n]) for x, n in zip(inputs, ndims, strict=True)]
    try:
        return np.broadcast_shapes(*leads)
    except ValueError:
        raise ShapeError(
            f"net: got leading axes {leads} for in_ndim={in_ndim}, expected axes that broadcast; "
            "reshape the inputs, or correct in_ndim."
        ) from None
