"""The text encoder of a Stable Diffusion as a condition net: captions by its own tokenizer.

    token ids [L]  ->  rows [L, d], the encoder's `last_hidden_state`

A caption is a start token, its tokens, an end token, and padding to L. The context of no condition
is that of the empty caption, as in the pipelines of diffusers.

Source: Rombach et al. 2022, arXiv:2112.10752, section 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import numpy as np

from probgen.errors import DataError, ShapeError
from probgen.language import ops
from probgen.language.declared import declaration
from probgen.language.kinds import having
from probgen.nets.adapters import TorchNet, require_pure, with_one_batch_axis
from probgen.nets.base import Array, Key, Params, Shape, one_shape
from probgen.nets.conditions import check_numbered
from probgen.trees import tree_leaves

UNBOUNDED = 10**6  # a tokenizer without a length has a number such as 1e30


@declaration(eq=False)
class DiffusersTextEncoder:
    """Token ids [..., L] -> rows [..., L, d], for `Diffusion(..., condition=)`, on torch.

        ids = text.tokens(["a photo of a dog", ""])        # int32 [2, L]

    The module's weights are the initial ones. `pg.from_diffusers(pipeline)` makes it; its methods
    are those of `nets.TextEncoder`.

    Args:
        module: a `CLIPTextModel` of transformers, or what is called like it: (ids [n, L]) -> a
            tuple whose first entry is the rows.
        tokenizer: of transformers: (captions, padding=, max_length=, ...) -> {"input_ids": ...}.
    """

    module: Annotated[
        Any, having("a text encoder of transformers", "named_parameters", "named_buffers")
    ]
    tokenizer: Annotated[Any, having("a tokenizer of transformers", "__call__", "batch_decode")]
    framework: ClassVar = "torch"

    @property
    def in_ndim(self) -> int:
        return 1

    @property
    def length(self) -> int:
        """L: of the tokenizer, or of the encoder's positions where that has none."""
        own = int(self.tokenizer.model_max_length)
        most = getattr(self.module.config, "max_position_embeddings", UNBOUNDED)
        return min(own, int(most))

    @property
    def dim(self) -> int:
        """Size of a row."""
        return int(self.module.config.hidden_size)

    def tokens(self, captions: str | Sequence[str]) -> np.ndarray:
        """int32 [n, L] ids of captions, n = 1 for a text; none is cut.

        Raises:
            DataError: a caption with more tokens than fit; captions that are no texts.
        """
        captions = [captions] if isinstance(captions, str) else list(captions)
        if wrong := [type(c).__name__ for c in captions if not isinstance(c, str)]:
            raise DataError(
                f"DiffusersTextEncoder.tokens: got a caption of type {wrong[0]}, expected a text, "
                "or a sequence of texts; token ids need no call of `tokens`."
            )
        rows = self.tokenizer(
            captions, padding="max_length", max_length=self.length, truncation=False
        )["input_ids"]
        for caption, row in zip(captions, rows, strict=True):
            if len(row) > self.length:
                raise DataError(
                    f"DiffusersTextEncoder.tokens: got a caption of {len(row)} tokens with those "
                    f"of its start and end, {caption!r}, expected at most {self.length}, the "
                    "encoder's length; shorten it (diffusers would leave out its end)."
                )
        return np.asarray(rows, np.int32).reshape(len(captions), self.length)

    def words(self, ids: np.ndarray) -> list[str]:
        """Captions of ids [n, L], or of one row [L], without start, end and padding.

        Raises:
            DataError: ids outside the vocabulary.
        """
        rows = np.atleast_2d(np.asarray(ids))
        self.check_values(rows)
        return self.tokenizer.batch_decode(rows.tolist(), skip_special_tokens=True)

    def lengths(self, ids: np.ndarray) -> np.ndarray:
        """[n] how many of the first ids of each caption [n, L] are its start and its words; its end
        and padding follow."""
        ends = np.atleast_2d(np.asarray(ids)) == self.tokenizer.eos_token_id
        return np.where(ends.any(axis=1), ends.argmax(axis=1), ends.shape[1])

    def _net(self) -> TorchNet:
        return TorchNet(self.module, 1)

    def init(self, key: Key, *shapes: Shape) -> Params:
        self._check_length(one_shape(self, shapes, 1))
        return self._net().init(key, *shapes)

    def _check_length(self, shape: Shape) -> None:
        if shape != (self.length,):
            raise ShapeError(
                f"DiffusersTextEncoder: got ids of shape {shape} a datum, expected "
                f"({self.length},), a whole caption with its padding; make them by "
                "`tokens(captions)`."
            )

    def apply(self, params: Params, ids: Array) -> Array:
        self._check_length(tuple(ids.shape[-1:]))
        net = self._net()

        def rows(ids: Array) -> Array:
            return net.call(params, ops.cast(ids, "int64"), return_dict=False)[0]

        return with_one_batch_axis(rows, (ids,), 1)

    def null(self, params: Params) -> Array:
        """[L, d] of the empty caption."""
        return self.apply(params, ops.asarray_like(self.tokens("")[0], tree_leaves(params)[0]))

    def check(self, params: Params, *inputs: Array) -> None:
        """Refuses a module that draws random numbers or changes its buffers; see `from_torch`."""
        require_pure(self.module, lambda: self.apply(params, *inputs))

    def check_values(self, values: np.ndarray) -> None:
        """Refuses what are no token ids: texts, fractions, or ids outside the vocabulary."""
        cure = "make them of captions by this encoder's `tokens(captions)`"
        check_numbered(
            values,
            int(self.module.config.vocab_size) - 1,
            "DiffusersTextEncoder",
            "token ids",
            cure,
        )

    def __identity__(self) -> dict[str, Any]:
        return {**self._net().__identity__(), "null": self.tokens("")}

    def __repr__(self) -> str:  # a module's own is pages long
        return (
            f"DiffusersTextEncoder({type(self.module).__name__}, {type(self.tokenizer).__name__})"
        )

    def out_shape(self, *shapes: Shape) -> Shape:
        return (self.length, self.dim)
