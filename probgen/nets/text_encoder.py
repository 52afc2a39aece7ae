"""Captions as a condition: words to token ids, and a small transformer from these to a context.

    h_i = word_table[id_i] + position_table[i];  h = layers(h);  rows = norm(h)  [L, dim]

A caption is a start token, its words, and padding to the length L. All L rows are the context, the
padding ones too, as in Stable Diffusion; the empty caption's rows are the context of no condition.

Source: Radford et al. 2021, arXiv:2103.00020 (a causal text transformer); Rombach et al. 2022,
arXiv:2112.10752 (its rows as the context of a denoiser).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np

from probgen.errors import DataError, ShapeError, UnknownName
from probgen.language import ops
from probgen.language.declared import declaration, require
from probgen.language.kinds import Text, Width, between, distinct, not_empty
from probgen.language.wording import did_you_mean
from probgen.nets.base import (
    Activation,
    Array,
    Key,
    Params,
    Shape,
    draw_weight,
    numbered,
    one_shape,
)
from probgen.nets.conditions import check_numbered
from probgen.nets.layers import Embedding
from probgen.nets.norms import LayerNorm
from probgen.nets.transformer import TransformerLayer

PAD, START = "<pad>", "<start>"


@declaration
class TextEncoder:
    """Token ids [..., L] -> rows [..., L, dim], for `Diffusion(..., condition=)`.

        text = nets.TextEncoder(("a", "red", "blue", "disk"), length=6)
        text.tokens(["a red disk", ""])     # [[1, 2, 3, 5, 0, 0], [1, 0, 0, 0, 0, 0]]

    Attributes:
        vocabulary: words in lower case; two more come before them, "<pad>" (0) and "<start>" (1).
        length: L, of a caption with its start token.
        dim: size of a row.
        num_layers, num_heads, expansion, activation: of the transformer (`TransformerLayer`).
        is_causal: whether a row reads itself and earlier ones only, as in CLIP. In either case rows
            of padding read the words before them, so they depend a little on the caption.
        is_padding_apart: whether words and padding do not read each other: a row of padding reads
            itself alone, and so is the same whatever the caption.

    Raises:
        DeclarationError: words that no caption has: in capitals, with a space, or named as the two.
    """

    vocabulary: Annotated[tuple[Text, ...], not_empty, distinct]
    length: Annotated[int, between(2, 10**6)] = 12
    dim: Width = 64
    num_layers: Width = 1
    num_heads: Width = 4
    expansion: Width = 4
    activation: Activation = "gelu"
    is_causal: bool = False
    is_padding_apart: bool = False

    def __post_init__(self) -> None:
        fits = all(w.lower().split() == [w] and w not in (PAD, START) for w in self.vocabulary)
        words = f"words in lower case without spaces, {PAD} and {START} not among them"
        require(fits, self, words, "vocabulary")

    @property
    def in_ndim(self) -> int:
        return 1

    @property
    def all_words(self) -> tuple[str, ...]:
        """The word of each id."""
        return (PAD, START, *self.vocabulary)

    def tokens(self, captions: str | Sequence[str]) -> np.ndarray:
        """int32 [n, L] ids of captions, n = 1 for a text: lower case, split at spaces.

        Raises:
            UnknownName: a word that is not in the vocabulary.
            DataError: a caption with more words than fit; captions that are no texts.
        """
        captions = [captions] if isinstance(captions, str) else list(captions)
        ids = {word: i for i, word in enumerate(self.all_words[2:], 2)}
        found = np.zeros((len(captions), self.length), np.int32)
        for row, caption in zip(found, captions, strict=True):
            words = self._split(caption)
            row[: len(words) + 1] = [1, *(self._id(ids, word, caption) for word in words)]
        return found

    def _split(self, caption: str) -> list[str]:
        if not isinstance(caption, str):
            raise DataError(
                f"TextEncoder.tokens: got a caption of type {type(caption).__name__}, expected a "
                "text, or a sequence of texts; token ids need no call of `tokens`."
            )
        words = caption.lower().split()
        if len(words) > self.length - 1:
            raise DataError(
                f"TextEncoder.tokens: got a caption of {len(words)} words, {caption!r}, expected "
                f"at most {self.length - 1}, which fit behind the start token in "
                f"length={self.length}; shorten it, or declare a longer encoder."
            )
        return words

    def _id(self, ids: dict[str, int], word: str, caption: str) -> int:
        if word not in ids:
            raise UnknownName(
                f"TextEncoder.tokens: got the word {word!r} in {caption!r}, expected one of the "
                f"{len(self.vocabulary)} words of the vocabulary"
                f"{did_you_mean(word, self.vocabulary) or '; declare it there.'}"
            )
        return ids[word]

    def words(self, ids: np.ndarray) -> list[str]:
        """Captions of ids [n, L], or of one row [L], without start and padding.

        Raises:
            DataError: ids outside the vocabulary.
        """
        rows = np.atleast_2d(np.asarray(ids))
        self.check_values(rows)
        known = self.all_words
        return [" ".join(known[i] for i in row if i > 1) for row in rows]

    def lengths(self, ids: np.ndarray) -> np.ndarray:
        """[n] how many of the first ids of each caption [n, L] are in use, the start among them."""
        used = np.atleast_2d(np.asarray(ids)) != 0
        return used.shape[1] - used[:, ::-1].argmax(axis=1)

    def init(self, key: Key, *shapes: Shape) -> Params:
        self._check_length(one_shape(self, shapes, 1))
        params = {
            "words": Embedding(len(self.all_words), self.dim).init(key, ()),
            "positions": draw_weight(key, (self.length, self.dim), 1, 1.0),
        }
        for name in self._names():
            params[name] = self._layer().init(key, self.out_shape())
        return params | {"norm": LayerNorm().init(key, self.out_shape())}

    def _names(self) -> list[str]:
        return [numbered("layer", i, self.num_layers) for i in range(self.num_layers)]

    def _layer(self) -> TransformerLayer:
        return TransformerLayer(self.num_heads, self.expansion, self.activation)

    def _check_length(self, shape: Shape) -> None:
        if shape != (self.length,):
            raise ShapeError(
                f"TextEncoder: got ids of shape {shape} a datum, expected ({self.length},), a "
                "whole caption with its padding; make them by `tokens(captions)`."
            )

    def apply(self, params: Params, ids: Array) -> Array:
        self._check_length(tuple(ids.shape[-1:]))
        table = params["words"]
        h = Embedding(*table["table"].shape).apply(table, ids) + params["positions"]
        mask = self._mask(ids)
        for name in self._names():
            h = self._layer().apply(params[name], h, mask=mask)
        return LayerNorm().apply(params["norm"], h)

    def _mask(self, ids: Array) -> Array | None:
        """[L, L] or [..., L, L], true where a row may read; None where all read all."""
        before = np.tril(np.ones((self.length, self.length), bool)) if self.is_causal else None
        if not self.is_padding_apart:
            return before
        is_word = ids != 0
        both = is_word[..., :, None] & is_word[..., None, :]
        both = both if before is None else ops.where(before, both, before)
        return ops.where(np.eye(self.length, dtype=bool), np.True_, both)

    def null(self, params: Params) -> Array:
        """[L, dim] of the empty caption: the start token and padding."""
        ids = ops.asarray_like(self.tokens("")[0], params["positions"])
        return self.apply(params, ops.cast(ids, "int32"))

    def check_values(self, values: np.ndarray) -> None:
        """Refuses what are no token ids: texts, fractions, or ids outside the vocabulary."""
        cure = "make them of captions by this encoder's `tokens(captions)`"
        check_numbered(values, len(self.all_words) - 1, "TextEncoder", "token ids", cure)

    def out_shape(self, *shapes: Shape) -> Shape:
        return (self.length, self.dim)
