"""`fit`: one driver for every algorithm that learns.

It knows nothing of models or losses: it feeds batches to a learner's `update`, chunk by chunk, and
does what every long computation needs around it. A step is a pure function of (seed, step, state),
which is why a run that was killed and resumed ends where the uninterrupted one does, to the bit.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import logging
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from probgen import checkpoint as checkpoints
from probgen import guard
from probgen.backends import resolve
from probgen.backends.protocol import Backend
from probgen.bound import Bound, bind, check_support
from probgen.callbacks import Callback
from probgen.data.sources import ArraySource, as_arrays, as_source
from probgen.data.streams import StreamSource
from probgen.errors import AlgorithmError, DataError, MissingSeed
from probgen.feed import Feed, merge_inputs
from probgen.fitted import Fitted
from probgen.history import History
from probgen.learner import Algorithm, Learner, all_params
from probgen.modelling import Model
from probgen.progress import bar
from probgen.trees import tree_map

log = logging.getLogger("probgen")
CHUNK = 100
INIT, EVALUATE, REPORT = 2**31 - 1, 2**31 - 2, 2**31 - 3  # streams of keys beside those of steps


@dataclasses.dataclass
class Progress:
    """What callbacks see of a fit."""

    step: int
    num_steps: int
    history: History
    _state: Any
    _backend: Backend

    def params(self) -> dict:
        """The current parameters, numpy (the moving average when one is kept)."""
        return tree_map(self._backend.to_numpy, _result_params(self._state))


def fit(
    model: Model | Fitted,
    data: Any,
    algorithm: Algorithm,
    *,
    num_epochs: int | None = None,
    num_steps: int | None = None,
    batch_size: int | None = 128,
    seed: int | None = None,
    backend: str | Backend = "auto",
    device: str = "auto",
    inputs: Mapping[str, Any] | None = None,
    names: tuple[str, ...] | None = None,
    validation: Any = None,
    eval_every: int | None = None,
    ema_decay: float | None = None,
    gradient_accumulation: int = 1,
    callbacks: Iterable[Callback] = (),
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 1000,
    resume: bool = True,
    max_retries: int = 4,
    progress_bar: bool = True,
) -> Fitted:
    """Learns the parameters of a model from data.

    Args:
        model: a declaration, or a `Fitted` whose parameters are the start.
        data: array [n, ...] (observes the site "x"), dict of arrays by site name, torch `Dataset`,
            Hugging Face data set, or an iterable of batches; see `probgen.data.as_source`.
        algorithm: such as `SVI(ELBO(), pg.Adam(1e-3))`.
        num_epochs, num_steps: how long; exactly one of them (data without a size need num_steps).
        batch_size: data per step; None for all of them.
        seed: an integer; same seed, same backend, same machine: same result.
        backend, device: "auto", "torch" or "jax", or a loaded backend; "cpu", "cuda:0".
        inputs: what the program conditions on; arrays with one row a datum go along with the data.
        names: which entries of a data set observe which sites.
        validation: held-out data, in the form of `data`, evaluated every `eval_every` steps (an
            epoch by default).
        ema_decay: keeps an exponential moving average of the parameters, p' = d p' + (1 - d) p,
            and returns it.
        gradient_accumulation: works a batch through in that many parts, for memory.
        callbacks: see `probgen.callbacks`; early stopping is one.
        checkpoint: a folder; the state is kept there every `checkpoint_every` steps and at the end,
            and a fit that finds one of its own there goes on from it (`resume`).
        max_retries: how often in a row a chunk with NaN or infinity is tried again at half the
            step size before `NonFiniteError`.

    Returns:
        A `Fitted`: model, parameters, history, report.

    Raises:
        MissingSeed, DataError, ShapeError, SupportError, UnknownName, AlgorithmError, SaveError,
        NonFiniteError: each says what was got, what was expected and what to do.
    """
    if seed is None:
        raise MissingSeed("fit: got no seed, expected an integer such as seed=0.")
    start, model, params = _start(model, backend, device)
    b = start
    constants, per_datum = merge_inputs(model, data, inputs)
    source = as_source(data, batch_size=batch_size, seed=seed, names=names)
    if per_datum:
        source = _with_inputs(source, per_datum, batch_size, seed)
    total = _num_steps(source, num_epochs, num_steps)
    size = source.batch_size
    if gradient_accumulation < 1 or size % gradient_accumulation:
        raise AlgorithmError(
            f"gradient_accumulation: got {gradient_accumulation} for batches of {size}, expected "
            "a positive divisor of the batch size."
        )
    example = source.example()
    bound, params = bind(
        model, b, data=example, constants=constants, params=params, seed=seed,
        num_data=source.size, num_steps=total, accumulate=gradient_accumulation,
    )  # fmt: skip
    root_key = b.key(seed)
    feed = Feed(source, b, lambda batch: _check(bound, params, batch, root_key))
    learner = algorithm.bind(bound)
    first = {k: b.asarray(v) for k, v in example.items()}
    # A copy, since an update may work in place and the model's own arrays are not ours to change.
    state = {"learner": learner.init(b.copy(params), b.fold_in(root_key, INIT), first)}
    if ema_decay is not None:
        state["ema"] = b.copy(state["learner"]["params"])
    identity = {
        "model": repr(model), "algorithm": repr(algorithm), "seed": seed, "batch_size": size,
        "backend": b.name, "ema_decay": ema_decay, "accumulate": gradient_accumulation,
    }  # fmt: skip
    history, step = History(), 0
    folder = Path(checkpoint) if checkpoint is not None else None
    if folder is not None and resume:
        kept = checkpoints.newest(folder, identity)
        if kept is not None:
            step, arrays, history = kept
            state = checkpoints.restore(state, arrays, b)
            log.info("fit: goes on from step %d of %s", step, folder)
    held_out = None if validation is None else as_arrays(validation, names=names)
    loop = _Loop(
        bound, learner, feed, root_key, total, ema_decay, held_out,
        eval_every or getattr(source, "steps_per_epoch", 1000), tuple(callbacks), folder,
        checkpoint_every, identity, max_retries, progress_bar,
    )  # fmt: skip
    began = time.perf_counter()
    state, step = loop.run(state, step, history)
    result = _result_params(state)
    key = b.fold_in(root_key, REPORT)
    report = learner.report(result, first, key, history) if learner.report else None
    info = {
        "backend": b.name, "seed": seed, "num_steps": step, "num_data": source.size,
        "seconds": round(time.perf_counter() - began, 3), **b.info(),
    }  # fmt: skip
    shapes = {k: tuple(v.shape[1:]) for k, v in example.items()}
    out = tree_map(lambda x: np.array(b.to_numpy(x)), result)
    return Fitted(model, out, history, report, info, shapes, dict(constants))


@dataclasses.dataclass
class _Loop:
    bound: Bound
    learner: Learner
    feed: Feed
    key: Any
    total: int
    ema_decay: float | None
    held_out: dict | None
    eval_every: int
    callbacks: tuple[Callback, ...]
    folder: Path | None
    checkpoint_every: int
    identity: dict
    max_retries: int
    progress_bar: bool

    def run(self, state: Any, step: int, history: History) -> tuple[Any, int]:
        b = self.bound.backend
        chunk = self.bound.backend.run_steps(self._update())
        progress = Progress(step, self.total, history, state, b)
        for callback in self.callbacks:
            callback.on_start(progress)
        length = chunk_length(self.total)
        with bar(self.total, step, self.progress_bar) as shown:
            while step < self.total:
                count = min(length - step % length, self.total - step)
                state, metrics, count = self._chunk(chunk, state, step, count, history)
                if count == 0:
                    break
                before, step = step, step + count
                history.extend(metrics)
                progress.step, progress._state = step, state
                stop = [c.on_chunk(progress, metrics) for c in self.callbacks]
                if self.held_out is not None and _crossed(
                    before, step, self.eval_every, self.total
                ):
                    found = self._evaluate(state)
                    history.add_validation(step, found)
                    stop += [c.on_validation(progress, found) for c in self.callbacks]
                shown(count, metrics)
                stopped = any(stop)
                if self.folder is not None and (
                    stopped or _crossed(before, step, self.checkpoint_every, self.total)
                ):
                    checkpoints.save(self.folder, step, state, history, b, self.identity)
                if stopped:
                    history.events.append(f"step {step}: a callback stopped the fit")
                    break
        for callback in self.callbacks:
            callback.on_end(progress)
        return state, step

    def _chunk(self, chunk: Any, state: Any, step: int, count: int, history: History) -> Any:
        """One chunk of steps; from the last good state again at half the step when not finite."""
        b = self.bound.backend
        batches, indices, count = self.feed.chunk(step, count)
        if count == 0:
            history.events.append(f"step {step}: the data ended")
            return state, {}, 0
        for attempt in range(self.max_retries + 1):
            good = b.copy(state)
            new, metrics = chunk(state, batches, indices, self.key, step)
            problem = guard.find_problem(b, new, metrics, step)
            if problem is None:
                return new, metrics, count
            state = guard.lower_step(good, attempt, problem, self.max_retries, history)
        raise AssertionError("lower_step raises on the last attempt")

    def _update(self) -> Any:
        update, decay, b = self.learner.update, self.ema_decay, self.bound.backend
        if decay is None:

            def plain(state: Any, batch: Any, key: Any) -> Any:
                new, metrics = update(state["learner"], batch, key)
                return {"learner": new}, metrics

            return plain

        def averaged(state: Any, batch: Any, key: Any) -> Any:
            new, metrics = update(state["learner"], batch, key)
            ema = b.lerp(state["ema"], new["params"], 1.0 - decay)
            return {"learner": new, "ema": ema}, metrics

        return averaged

    def _evaluate(self, state: Any) -> dict[str, float]:
        """Means of the learner's held-out metrics over all held-out data, with the same noise."""
        if self.learner.evaluate is None:
            raise AlgorithmError(
                "validation: this algorithm has no held-out metric; leave `validation` out."
            )
        b, params = self.bound.backend, _result_params(state)
        size = len(next(iter(self.held_out.values())))  # type: ignore[union-attr]
        sums: dict[str, float] = {}
        for start in range(0, size, 500):
            rows = {k: b.asarray(v[start : start + 500]) for k, v in self.held_out.items()}  # type: ignore[union-attr]
            key = b.fold_in(b.fold_in(self.key, EVALUATE), start)
            count = min(500, size - start)
            for name, value in self.learner.evaluate(params, rows, key).items():
                value = b.to_numpy(value)
                if value.ndim == 0:
                    sums[name] = sums.get(name, 0.0) + float(value) * count / size
        return sums


def chunk_length(total: int) -> int:
    """Steps per compiled chunk: about `CHUNK`, and a divisor of the total where one is near."""
    if total <= 2 * CHUNK:
        return total
    near = [n for n in range(CHUNK // 2, 2 * CHUNK + 1) if total % n == 0]
    return min(near, key=lambda n: abs(n - CHUNK)) if near else CHUNK


def _crossed(before: int, now: int, every: int, total: int) -> bool:
    return now // every > before // every or now == total


def _result_params(state: Any) -> dict:
    params = all_params(state["learner"])
    return {**params, **state["ema"]} if "ema" in state else params


def _start(model: Any, backend: Any, device: str) -> tuple[Backend, Model, Any]:
    if isinstance(model, Fitted):
        return model.resolve(backend, device), model.model, model.params
    if not isinstance(model, Model):
        hint = "decorate it with @pg.model" if callable(model) else "declare a model first"
        raise AlgorithmError(f"fit: got {type(model).__name__} as the model; {hint}.")
    return resolve(backend, device), model, None


def _with_inputs(source: Any, per_datum: dict, batch_size: int | None, seed: int) -> ArraySource:
    if not isinstance(source, ArraySource):
        raise DataError(
            "inputs: arrays with one row a datum need data in memory; yield the inputs as entries "
            "of each batch instead."
        )
    return as_source({**source.arrays, **per_datum}, batch_size=batch_size, seed=seed)  # type: ignore


def _num_steps(source: Any, num_epochs: int | None, num_steps: int | None) -> int:
    if (num_epochs is None) == (num_steps is None):
        raise AlgorithmError(
            f"fit: got num_epochs={num_epochs} and num_steps={num_steps}, expected one of them."
        )
    if num_steps is None:
        if isinstance(source, StreamSource):
            raise AlgorithmError("fit: data without a size have no epochs; give num_steps instead.")
        num_steps = num_epochs * source.steps_per_epoch  # type: ignore[operator]
    if int(num_steps) != num_steps or num_steps < 1:
        raise AlgorithmError(f"fit: got {num_steps} steps, expected a positive whole number.")
    return int(num_steps)


def _check(bound: Bound, params: Any, batch: dict, key: Any) -> None:
    b = bound.backend
    rows = len(next(iter(batch.values())))
    for start in range(0, rows, 500):
        part = {k: b.asarray(v[start : start + 500]) for k, v in batch.items()}
        check_support(bound, params, part, key)


def fingerprint(value: Any) -> str:
    """A short hash of a declaration's text, for comparing runs."""
    return hashlib.sha256(inspect.cleandoc(repr(value)).encode()).hexdigest()[:16]
