"""What every network declaration is made of: the protocol, initial weights, shape checks.

A network is a frozen dataclass of plain options with two methods:

    init(key, *shapes) -> params     nested dicts of float32 numpy arrays
    apply(params, *inputs) -> output

`key` is a `numpy.random.Generator`, so both backends start from the same numbers; `shapes` are the
event shapes of the inputs, without batch axes; `apply` takes any number of leading batch axes. A
net may have more: `buffers`, `after_update`, `penalty` (`probgen.nets.buffers`), `out_shape`, and
an `init(key, *shapes, data=None)` that looks at a first batch of its inputs (`wants_data`). One
parameter layout serves both backends: dense {"weight": [in, out], "bias": [out]}, convolution
{"weight": [kh, kw, cin, cout], "bias": [cout]}, norm {"scale", "offset"}, embedding {"table"}.

Initial weights are normal with variance `init_scale` / fan-in: 1 keeps the scale of a linear layer
(LeCun et al. 1998), 2 that of a layer before a rectifier (He et al. 2015, arXiv:1502.01852).
Biases start at zero.
"""

from __future__ import annotations

import contextlib
import contextvars
import importlib
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Protocol, runtime_checkable

import numpy as np

from probgen.errors import BackendError, DeclarationError, ShapeError
from probgen.language import ops
from probgen.language.kinds import Axes, Text, distinct, not_empty, one_of
from probgen.language.memory import ask
from probgen.trees import tree_leaves, tree_map

Array = Any
Params = Any
Shape = tuple[int, ...]
Key = np.random.Generator


@runtime_checkable
class Net(Protocol):
    """A network of one's own needs these two methods and nothing else."""

    def init(self, key: Key, *shapes: Shape) -> Params:
        """Initial parameters for inputs of these event shapes."""

    def apply(self, params: Params, *inputs: Array) -> Array:
        """The output, with the leading axes of the inputs."""


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": ops.relu,
    "silu": ops.silu,
    "lipswish": lambda x: ops.silu(x) / 1.1,  # slopes of at most one
    "gelu": ops.gelu,
    "tanh": ops.tanh,
    "elu": ops.elu,
    "softplus": ops.softplus,
    "leaky_relu": ops.leaky_relu,
    "sigmoid": ops.sigmoid,
    "identity": lambda x: x,
}

Heads = Annotated[tuple[Text, ...], not_empty, distinct] | None
EventAxes = Axes | tuple[Axes, ...] | None
Activation = Annotated[str, one_of(sorted(ACTIVATIONS))]

# Rectifiers halve the second moment, so the weights before them are drawn with twice the variance.
_RECTIFIERS = {"relu", "silu", "lipswish", "gelu", "elu", "leaky_relu"}


def activation(name: str) -> Callable[[Array], Array]:
    """The elementwise function of that name.

    Raises:
        DeclarationError: no such name.
    """
    if name not in ACTIVATIONS:
        raise DeclarationError(
            f"activation: got {name!r}, expected one of {', '.join(sorted(ACTIVATIONS))}; "
            "for another function write a net of your own with `init` and `apply`."
        )
    return ACTIVATIONS[name]


def scale_before(name: str) -> float:
    """The `init_scale` of weights whose output goes through this activation."""
    activation(name)
    return 2.0 if name in _RECTIFIERS else 1.0


def draw_weight(key: Key, shape: Shape, fan_in: int, init_scale: float) -> np.ndarray:
    """Normal weights of variance init_scale / fan_in, float32."""
    _take(shape)
    std = math.sqrt(init_scale / max(fan_in, 1))
    return (key.standard_normal(shape) * std).astype(np.float32)


def wants_data(net: Any) -> bool:
    """Whether a net starts from a first batch of its inputs: it says so by `wants_data`, or its
    `init` takes `data`, a tuple of arrays of the backend, [n, *event] for each input."""
    said = getattr(net, "wants_data", None)
    return "data" in inspect.signature(net.init).parameters if said is None else bool(said)


def init_layer(
    layer: Any, key: Key, shapes: Sequence[Shape], data: Sequence[Array] | None
) -> tuple[Params, tuple[Array, ...] | None]:
    """A layer's first parameters, and its outputs on the batch, which the next layer starts from;
    None where there is no batch."""
    if data is None:
        return layer.init(key, *shapes), None
    more = {"data": data} if wants_data(layer) else {}
    params = layer.init(key, *shapes, **more)
    on_device = tree_map(lambda leaf: ops.asarray_like(leaf, data[0]), params)
    return params, (layer.apply(on_device, *data),)


def zeros(*shape: int) -> np.ndarray:
    """Float32 zeros: biases and offsets."""
    return full(shape, 0.0)


def ones(*shape: int) -> np.ndarray:
    """Float32 ones: scales of norms."""
    return full(shape, 1.0)


def full(shape: Shape, value: float) -> np.ndarray:
    """Float32, one value everywhere."""
    _take(shape)
    return np.full(shape, value, np.float32)


@contextlib.contextmanager
def at_most(values: int) -> Iterator[None]:
    """Within, initial parameters of so many values in all are made, and no more.

    A file that declares a net of 10^10 weights is refused before they are drawn.
    """
    token = _room.set([values])
    try:
        yield
    finally:
        _room.reset(token)


_room: contextvars.ContextVar[list[int] | None] = contextvars.ContextVar("room", default=None)


def _take(shape: Shape) -> None:
    room = _room.get()
    if room is None:
        # Four bytes a value, drawn at eight, and an optimiser keeps moments.
        size = 16 * math.prod(shape)
        ask(f"weights of shape {tuple(shape)}", size, "make layers narrower", DeclarationError)
        return
    room[0] -= math.prod(shape)
    if room[0] < 0:
        raise ShapeError(
            f"a net asks for parameters of shape {tuple(shape)}, expected no more values than are "
            "stored; was the file written by another declaration?"
        )


def count(params: Params) -> int:
    """Number of scalars in a tree of parameters."""
    return sum(math.prod(leaf.shape) for leaf in tree_leaves(params))


def numbered(prefix: str, index: int, total: int) -> str:
    """ "layer3", or "layer03" of more than ten: sorted names keep the order of the layers."""
    return f"{prefix}{index:0{len(str(max(total - 1, 0)))}d}"


def one_shape(net: Any, shapes: Sequence[Shape], ndim: int | None = None) -> Shape:
    """The event shape of a net's only input, checked for its number of axes.

    Raises:
        ShapeError: another number of inputs or axes.
    """
    if len(shapes) != 1:
        raise ShapeError(
            f"{type(net).__name__}.init: got {len(shapes)} input shapes, expected 1; "
            "concatenate the inputs, or use MLP, which takes several."
        )
    shape = tuple(shapes[0])
    if ndim is not None and len(shape) != ndim:
        layout = {1: "[features]", 3: "[h, w, c]"}.get(ndim, f"{ndim} axes")
        raise ShapeError(
            f"{type(net).__name__}.init: got event shape {shape}, expected {layout}; give the "
            "shape of one datum without batch axes, images channel-last."
        )
    return shape


def check_last(net: Any, x: Array, expected: int, ndim: int = 1) -> None:
    """Refuse an input with too few axes or another size of the last one.

    Raises:
        ShapeError: says what was got and expected.
    """
    if len(x.shape) < ndim or x.shape[-1] != expected:
        event = {1: "[..., {}]", 2: "[..., n, {}]", 3: "[..., h, w, {}]"}[ndim].format(expected)
        raise ShapeError(
            f"{type(net).__name__}.apply: got an input of shape {tuple(x.shape)}, expected {event} "
            "as declared by `init`; reshape the input, or initialise with its event shape."
        )


def out_shape(net: Any, params: Params, *shapes: Shape) -> Shape:
    """Event shape of a net's output: its own `out_shape(*shapes)`, else found by one run on zeros.

    Raises:
        BackendError: the net has no `out_shape` and no framework is installed to run it.
    """
    if hasattr(net, "out_shape"):
        return tuple(net.out_shape(*shapes))
    module = ops.running_ops.get() or _installed_ops()
    inputs = [module.asarray(np.zeros(shape, np.float32)) for shape in shapes]
    return tuple(net.apply(tree_map(module.asarray, params), *inputs).shape)


def _installed_ops() -> Any:
    for name in ("torch", "jax"):
        try:
            return importlib.import_module(f"probgen.backends.{name}.ops")
        except ModuleNotFoundError:
            continue
    raise BackendError(
        "nets: got a net without `out_shape` and no framework to run it, expected torch or jax; "
        "install one, or give the net a method out_shape(*shapes) -> shape."
    )
