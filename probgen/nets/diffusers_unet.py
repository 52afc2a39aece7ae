"""A U-Net of diffusers as a denoiser: our axes, times and conditions outside, its own inside.

Its condition goes by a context [..., m, d], as every denoiser's does: the rows of its
`encoder_hidden_states` as they are, or its class label as one number.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from probgen.errors import ShapeError
from probgen.language import ops
from probgen.language.declared import declaration
from probgen.language.kinds import Width, having
from probgen.nets.adapters import TorchNet, common_lead, require_pure, with_one_batch_axis
from probgen.nets.attention_maps import MapReplacement, for_layers
from probgen.nets.base import Array, Key, Params, Shape
from probgen.nets.diffusers_attention import cross_attention, watched


@declaration(eq=False)
class DiffusersUNet:
    """f(x [..., h, w, c], t [...], condition or none) -> [..., h, w, c], on torch.

    The module's weights are the initial ones; their layout stays its own. `pg.from_diffusers` makes
    it, with its schedule, a `Diffusion`.

    Args:
        module: a `UNet2DModel` or `UNet2DConditionModel` of diffusers, or what is called like them:
            (x [n, c, h, w], t [n], ..., return_dict=False) -> a tuple of one image.
        condition: the module's own name for the third input, a context [..., m, d]:
            "encoder_hidden_states", its rows; "class_labels", one number [..., 1, 1]; or None.
    """

    module: Annotated[Any, having("a U-Net of diffusers", "named_parameters", "named_buffers")]
    condition: Literal["encoder_hidden_states", "class_labels"] | None = None
    framework: ClassVar = "torch"

    @property
    def in_ndim(self) -> tuple[int, ...]:
        """Event axes of the image, the time and the condition."""
        return (3, 0) if self.condition is None else (3, 0, 2)

    def _net(self) -> TorchNet:
        return TorchNet(self.module, self.in_ndim)

    def init(self, key: Key, *shapes: Shape) -> Params:
        return self._net().init(key, *shapes)

    @property
    def has_maps(self) -> bool:
        """Whether it reads a context by cross-attention, whose maps can be read and replaced."""
        return bool(self._attending())

    def _attending(self) -> dict[str, Any]:
        is_read = self.condition == "encoder_hidden_states"
        return cross_attention(self.module) if is_read else {}

    def apply(
        self,
        params: Params,
        x: Array,
        t: Array,
        *condition: Array,
        return_maps: bool = False,
        replace: MapReplacement | None = None,
    ) -> Any:
        """The output, and with `return_maps` a dict of the cross-attention maps in use, [...,
        heads, pixels, m], by the name of the layer in the module; `replace` has others for them.

        Raises:
            AlgorithmError: maps of a layer that does more than attend.
        """
        inputs = (x, t, *condition)
        if not return_maps and replace is None:
            return self._images(params, inputs)
        layers = self._attending()
        stored = for_layers(replace, list(layers))
        with watched(layers, stored, common_lead(inputs, self.in_ndim)) as maps:
            y = self._images(params, inputs)
        return (y, maps) if return_maps else y

    def _images(self, params: Params, inputs: tuple[Array, ...]) -> Array:
        net = self._net()

        def image(x: Array, t: Array, *given: Array) -> Array:
            options: dict[str, Any] = {"return_dict": False}
            if self.condition is not None:
                (value,) = given
                is_label = self.condition == "class_labels"
                options[self.condition] = ops.cast(value[:, 0, 0], "int64") if is_label else value
            y = net.call(params, ops.transpose(x, (0, 3, 1, 2)), t, **options)[0]
            return ops.transpose(y, (0, 2, 3, 1))

        return with_one_batch_axis(image, inputs, self.in_ndim)

    def check(self, params: Params, *inputs: Array) -> None:
        """Refuses a module that draws random numbers or changes its buffers; see `from_torch`."""
        require_pure(self.module, lambda: self.apply(params, *inputs))

    def __identity__(self) -> dict[str, Any]:
        return {**self._net().__identity__(), "condition": self.condition}

    def __repr__(self) -> str:  # a module's own is pages long
        return f"DiffusersUNet({type(self.module).__name__}, condition={self.condition!r})"

    def out_shape(self, *shapes: Shape) -> Shape:
        return tuple(shapes[0])


@declaration
class GivenContext:
    """A condition as it stands, as a context: rows [..., m, d], or a number [...] as [..., 1, 1].

    Attributes:
        shape: of one datum's condition, (m, d) or ().

    It has no context of no condition: guidance takes `ContextEmbedding`, whose null is known.
    """

    shape: tuple[Width, ...] = ()

    @property
    def in_ndim(self) -> int:
        """Event axes of the condition."""
        return len(self.shape)

    def init(self, key: Key, *shapes: Shape) -> Params:
        return {}

    def apply(self, params: Params, x: Array) -> Array:
        if tuple(x.shape[x.ndim - len(self.shape) :]) != self.shape:
            raise ShapeError(
                f"GivenContext: got a condition of shape {tuple(x.shape)}, expected {self.shape} "
                "for each datum, as declared."
            )
        return x if self.shape else ops.reshape(ops.cast(x, "float32"), (*x.shape, 1, 1))

    def out_shape(self, *shapes: Shape) -> Shape:
        return self.shape or (1, 1)
