"""A condition net with rows of its own at the end of another's context: a learned subject.

    [c, c_s] = c with its last n rows, those of padding, replaced by c_s

c_s are rows of the encoder's *output*; they do not go through it. They may be one set, or one for
each step of a sampler, chosen by the step at which the denoiser is asked.

Source: Wang et al. 2023, arXiv:2312.00079, section 3.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from probgen.errors import AlgorithmError, DataError, ShapeError
from probgen.language import ops
from probgen.language.declared import declaration, require
from probgen.language.kinds import AnyNet, Text, Width
from probgen.nets.base import Array, Key, Params, Shape, full

CLOSE = 1e-3  # of a step: times are whole, or come of float32


@declaration
class SubjectTokens:
    """The context of `net` with its last `num_tokens` rows replaced by parameters "rows".

    Attributes:
        net: a condition net, such as `nets.TextEncoder(...)`.
        num_tokens: n, how many rows are the subject's.
        times: of the sampler's steps, the noisiest first, a set of rows for each; None for one set
            at all steps.
        word: the subject's noun, which a prompt must have; None, any prompt will do.

    Parameters: "net", those of `net`; "rows" [n, d], or [steps, n, d] in the order of `times`.

    Raises:
        ShapeError: at `init`, if the context has no more than n rows.
        DataError: a prompt that reaches into the last n rows, or lacks the word.
        AlgorithmError: asked at a step that has no rows.
    """

    net: AnyNet
    num_tokens: Width = 5
    times: tuple[float, ...] | None = None
    word: Text | None = None

    def __post_init__(self) -> None:
        falls = self.times is None or (self.times and (np.diff(self.times) < 0).all())
        require(bool(falls), self, "times that fall, the noisiest first", "times")

    @property
    def in_ndim(self) -> Any:
        return getattr(self.net, "in_ndim", None)

    def init(self, key: Key, *shapes: Shape) -> Params:
        m, d = self.net.out_shape(*shapes)
        if m <= self.num_tokens:
            raise ShapeError(
                f"SubjectTokens: got num_tokens={self.num_tokens} for a context of {m} rows, "
                "expected fewer, so that the prompt has some; lower it."
            )
        lead = () if self.times is None else (len(self.times),)
        rows = full((*lead, self.num_tokens, d), 0.0)
        return {"net": self.net.init(key, *shapes), "rows": rows}

    def apply(self, params: Params, x: Array) -> Array:
        """[..., m, d]; of a set for each step the last n rows are put in by `at`."""
        context = self.net.apply(params["net"], x)
        return context if self.times is not None else with_rows(context, params["rows"])

    def at(self, params: Params, context: Array, t: Array) -> Array:
        """The context [n, m, d] at the steps t [n] at which the denoiser is asked."""
        if self.times is None:
            return context
        middles = ops.asarray_like(np.convolve(self.times, [0.5, 0.5], "valid"), t)
        place = ops.sum(ops.where(t[..., None] < middles, 1.0, 0.0), axis=-1)
        return with_rows(context, ops.take(params["rows"], ops.cast(place, "int32")))

    def null(self, params: Params) -> Array:
        """[m, d] of no condition, without the subject."""
        return self.net.null(params["net"])

    def check_times(self, times: np.ndarray) -> None:
        """Refuses steps of a sampler for which there are no rows.

        Raises:
            AlgorithmError: says which steps it has.
        """
        if self.times is None:
            return
        away = np.abs(np.asarray(times)[:, None] - np.asarray(self.times)).min(axis=1)
        if (away > CLOSE).any():
            i = int(away.argmax())
            raise AlgorithmError(
                f"SubjectTokens: got a sampler that asks at the step {times[i]:g}, expected the "
                f"{len(self.times)} steps for which the subject was learned, {min(self.times):g} "
                f"to {max(self.times):g}; draw with the sampler that it was learned for, or learn "
                "it again for this one."
            )

    def check_values(self, values: np.ndarray) -> None:
        """Refuses what `net` does, prompts that leave no room for the rows, or lack the word."""
        if hasattr(self.net, "check_values"):
            self.net.check_values(values)
        if not hasattr(self.net, "lengths"):
            return
        ids = np.asarray(values).reshape(-1, np.shape(values)[-1])
        room = ids.shape[-1] - self.num_tokens
        used = np.asarray(self.net.lengths(ids))
        if (used > room).any():
            i = int(used.argmax())
            (said,) = self.net.words(ids[i])
            raise DataError(
                f"SubjectTokens: got the prompt {said!r}, whose {used[i]} tokens reach into the "
                f"last {self.num_tokens} of {ids.shape[-1]} rows, expected at most {room}, since "
                "those rows are the subject's; shorten it, or learn fewer rows."
            )
        require_word(self.net, ids, self.word)

    def out_shape(self, *shapes: Shape) -> Shape:
        return self.net.out_shape(*shapes)


def with_rows(context: Array, rows: Array) -> Array:
    """[..., m, d] with the last n rows replaced by `rows` [n, d] or [..., n, d]."""
    n, d = rows.shape[-2:]
    rows = ops.broadcast_to(rows, (*context.shape[:-2], n, d))
    return ops.concatenate([context[..., :-n, :], rows], axis=-2)


def require_word(net: Any, ids: np.ndarray, word: str | None) -> None:
    """Refuses prompts [n, length] without the subject's word.

    Raises:
        DataError: shows the first.
    """
    if word is None:
        return
    for said in net.words(ids):
        if word not in said.split():
            raise DataError(
                f"SubjectTokens: got the prompt {said!r}, expected one with the subject's word "
                f"{word!r}, to which the learned rows belong; add it."
            )
