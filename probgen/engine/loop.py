"""The loop of a fit: chunks of compiled steps, and between them all that a long computation needs.

After each chunk: the non-finite guard, history, held-out evaluation, callbacks, checkpoint. A step
is a pure function of (seed, step, state), so how a run is cut into chunks does not change its
numbers, and a run that was killed and resumed ends where the uninterrupted one does, to the bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from probgen.backends.protocol import Backend
from probgen.engine.batches import BatchFeed
from probgen.engine.best import Best
from probgen.engine.bound import Bound
from probgen.engine.callbacks import Callback
from probgen.engine.explain import explain
from probgen.engine.guard import Guard, Problem, lower_step
from probgen.engine.interrupt import asked_to_stop
from probgen.engine.learner import Learner, all_params
from probgen.engine.together import largest
from probgen.errors import AlgorithmError, DivergedError, NonFiniteError
from probgen.progress import bar, log
from probgen.records.checkpoint import Checkpoints
from probgen.records.history import History
from probgen.trees import tree_map

CHUNK = 100
EVALUATE = 2**31 - 2  # a stream of keys beside those of the steps


@dataclasses.dataclass
class Progress:
    """What callbacks see of a fit."""

    step: int
    num_steps: int
    history: History
    _state: Any
    _backend: Backend

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes files, of a fit in several."""
        return self._backend.process == 0

    def params(self) -> dict:
        """A copy of the current parameters, numpy (of their moving average when one is kept)."""
        return numpy_copy(self._backend, result_params(self._state))


@dataclasses.dataclass
class Loop:
    """One fit's settings; `run` is the loop.

    Attributes:
        total: steps of the whole fit.
        held_out: arrays to evaluate on every `eval_every` steps, `eval_rows` at a time, or None.
        checkpoints: where the state is kept every `checkpoint_every` steps, or None.
    """

    bound: Bound
    learner: Learner
    feed: BatchFeed
    key: Any
    total: int
    ema_decay: float | None
    held_out: dict[str, np.ndarray] | None
    eval_every: int
    eval_rows: int
    callbacks: tuple[Callback, ...]
    checkpoints: Checkpoints | None
    checkpoint_every: int
    max_retries: int
    progress_bar: bool

    def __post_init__(self) -> None:
        self._guard = Guard(self.bound.backend, self.learner.cures)
        has_data = self.held_out is not None
        self.best = Best(self.bound.backend, self.learner, self.max_retries, has_data)
        if self.held_out is not None and self.learner.evaluate is None:
            raise AlgorithmError(
                "validation: this algorithm has no held-out metric; leave `validation` out."
            )

    def run(self, state: Any, step: int, history: History) -> tuple[Any, int]:
        """The state and the number of steps after the last one."""
        b = self.bound.backend
        chunk = b.run_steps(self._update())
        progress = Progress(step, self.total, history, state, b)
        evaluates = self.held_out is not None
        marks = [self.eval_every] if evaluates else []
        marks += [self.checkpoint_every] if self.checkpoints is not None else []
        marks.append(chunk_length(min([self.total, *marks]), self.feed.max_steps))
        for callback in self.callbacks:
            callback.on_start(progress)
        with (
            asked_to_stop(self.checkpoints is not None) as asked,
            bar(self.total, step, self.progress_bar) as shown,
        ):
            if self.best.judge is not None and step == 0:
                # So that there is a way back from the first steps on.
                found = self._evaluate(state)
                _record(history, 0, found)
                self.best.look(state, 0, found, history)
            stopped = ended = False
            while step < self.total and not (stopped or ended):
                end = min(self.total, *(step - step % m + m for m in marks))
                try:
                    state, metrics, count = self._chunk(chunk, state, step, end - step, history)
                except (DivergedError, NonFiniteError) as error:
                    state, stopped = self._given_up(error, step, history), True
                    metrics, count, end = {}, 0, step
                before, step = step, step + count
                ended = step < end
                if count:
                    history.extend(metrics)
                    self._remark(step, metrics, history)
                progress.step, progress._state = step, state
                stop = [c.on_chunk(progress, metrics) for c in self.callbacks if count]
                last = ended or step == self.total
                if evaluates and (last or _crossed(before, step, self.eval_every)):
                    found = self._evaluate(state)
                    _record(history, step, found)
                    self._remark(step, found, history)
                    stop += [c.on_validation(progress, found) for c in self.callbacks]
                    try:
                        state = self.best.look(state, step, found, history)
                    except DivergedError as error:
                        state, stopped = self._given_up(error, step, history), True
                    progress._state = state
                if largest(b, int(any(stop))):
                    stopped = True
                    history.events.append(f"step {step}: a callback stopped the fit")
                if ended:
                    history.events.append(f"step {step}: the data ended")
                shown(count, metrics)
                if self.checkpoints is None:
                    continue
                # What all know of: a signal to this process that comes later waits for its turn.
                told = largest(b, asked.signal or 0)
                if told or stopped or last or _crossed(before, step, self.checkpoint_every):
                    kept = self.best.to_keep(state)
                    self.checkpoints.save(step, kept, history, b, finished=stopped or ended)
                if told:
                    asked.signal = told
                    asked.stop(
                        f"fit: stopped at step {step} of {self.total}, which is kept in "
                        f"{self.checkpoints.root}; with resume=True, the default, the same call "
                        "goes on from there."
                    )
        if self.best.state is not None and self.best.step != step:
            history.events.append(f"what is kept is the state {self.best.words}")
        for callback in self.callbacks:
            callback.on_end(progress)
        return state, step

    def _given_up(self, error: Exception, step: int, history: History) -> Any:
        """The best state, where there is one, in place of an error that no retry mended; a fit
        that fails from its first update on has learned nothing."""
        if self.best.state is None or step == 0:
            raise error
        text = str(error).removeprefix("fit: ")
        message = f"{text if text.startswith('step ') else f'step {step}: {text}'} The fit ends."
        history.events.append(message)
        log.warning("fit: %s", message)
        return self.bound.backend.copy(self.best.state)

    def _remark(self, step: int, metrics: Mapping[str, Any], history: History) -> None:
        """Says what the learner finds amiss, each thing once in a fit."""
        if self.learner.remarks is None:
            return
        for name, text in self.learner.remarks(metrics).items():
            if not any(f": {name}: " in event for event in history.events):
                history.events.append(f"step {step}: {name}: {text}")
                log.warning("fit: step %d: %s: %s", step, name, text)

    def _chunk(self, chunk: Any, state: Any, step: int, count: int, history: History) -> Any:
        """One chunk of steps; from the last good state again at half the step when not finite."""
        b = self.bound.backend
        where = f"the last good state{self.best.renewal}"
        batches, indices, count = self.feed.chunk(step, count)
        if count == 0:
            return state, {}, 0
        for attempt in range(self.max_retries + 1):
            good = b.copy(state)  # an update may work in place
            new, metrics = chunk(state, batches, indices, self.key, step)
            problem = self._guard.find_problem(new, metrics, step)
            if problem is None:
                said = self._watched(metrics)
                if said is None:
                    return new, metrics, count
                if self.best.state is not None:
                    state = self.best.back(said, step, history)
                    continue
                state = lower_step(
                    self.best.renewed(good), attempt, said, self.max_retries, history,
                    is_watched=True, where=where,
                )  # fmt: skip
                continue
            if step == attempt == 0:
                self._check_start(chunk, good, batches, indices, problem)
            why = self._why(chunk, good, batches, indices, step, problem.at)
            # Where the state before the chunk gives NaN already, no smaller step mends it.
            retries = 0 if why and problem.at == 0 else self.max_retries
            state = self.best.renewed(good)
            state = lower_step(state, attempt, problem.text, retries, history, why, where=where)
        raise DivergedError(
            f"fit: step {step}: still amiss after {self.max_retries + 1} attempts at these "
            "updates, by turns not finite and as the guard says, expected a fit that goes on; "
            "lower the learning rate."
        )

    def _watched(self, metrics: dict[str, np.ndarray]) -> str | None:
        """What the learner's own watch says of a chunk, with the names of its metrics at hand."""
        return None if self.learner.watch is None else self.learner.watch(metrics)

    def _check_start(
        self, chunk: Any, good: Any, batches: Any, indices: Any, problem: Problem
    ) -> None:
        """Refuses a start whose own loss or gradient is not finite: no step size mends that.

        Raises:
            NonFiniteError: the first update fails from the initial parameters as they are.
        """
        if problem.at > 1 or self._why(chunk, good, batches, indices, 0, 0):
            return  # a later update, or data and arguments that are told by their names
        if problem.at == 1:
            first = batches if indices is not None else {k: v[:1] for k, v in batches.items()}
            rows = None if indices is None else indices[:1]
            new, metrics = chunk(self.bound.backend.copy(good), first, rows, self.key, 0)
            found = self._guard.find_problem(new, metrics, 0)
            if found is None:
                return
            problem = found
        what = "the gradient at step 0" if " after step " in problem.text else problem.text
        raise NonFiniteError(
            f"fit: {what} is NaN or infinite with the initial parameters, before any "
            "learning rate plays a part; start the nets smaller (out_scale=0.01 of an MLP whose "
            "output is exponentiated, the second argument of nets.Parameter), standardise the "
            "data, or keep what is exponentiated bounded (ops.softplus in place of ops.exp)."
        )

    def _why(self, chunk: Any, good: Any, batches: Any, indices: Any, step: int, index: int) -> str:
        """Which arguments of distributions left their domains at a chunk's update of that index:
        the updates before it are made again, and the programs run on its batch."""
        b = self.bound.backend
        state, rows = b.copy(good), index if indices is None else indices[index]
        if index:
            first = {k: v[:index] for k, v in batches.items()} if indices is None else batches
            part = None if indices is None else indices[:index]
            state, _ = chunk(state, first, part, self.key, step)
        batch = {k: v[rows] for k, v in batches.items()}
        params = all_params(state["learner"])
        size = None if batch else self.bound.num_draws
        return explain(self.bound, params, batch, b.fold_in(self.key, step + index), size)

    def _update(self) -> Any:
        update, decay = self.learner.update, self.ema_decay
        if decay is None:

            def plain(state: Any, batch: Any, key: Any) -> Any:
                new, metrics = update(state["learner"], batch, key)
                return {"learner": new}, metrics

            return plain

        def averaged(state: Any, batch: Any, key: Any) -> Any:
            new, metrics = update(state["learner"], batch, key)
            ema = self.bound.average(state["ema"], new["params"], 1.0 - decay)
            return {"learner": new, "ema": ema}, metrics

        return averaged

    def _evaluate(self, state: Any) -> dict[str, float]:
        """Means of the learner's held-out metrics over all held-out data, with the same noise."""
        b, params, arrays = self.bound.backend, result_params(state), self.held_out or {}
        size = len(next(iter(arrays.values())))
        sums: dict[str, float] = {}
        for start in range(0, size, self.eval_rows):
            stop = min(start + self.eval_rows, size)
            rows = {k: b.asarray(v[start:stop]) for k, v in arrays.items()}
            key = b.fold_in(b.fold_in(self.key, EVALUATE), start)
            for name, value in self.learner.evaluate(params, rows, key).items():  # type: ignore
                value = b.to_numpy(value)
                if value.ndim == 0:
                    sums[name] = sums.get(name, 0.0) + float(value) * (stop - start) / size
        return sums


def _record(history: History, step: int, found: dict[str, float]) -> None:
    history.add_validation(step, found)
    bad = sorted(name for name, value in found.items() if not np.isfinite(value))
    if bad:
        message = f"step {step}: {', '.join(bad)} on the held-out data is NaN or infinite"
        history.events.append(message)
        log.warning("fit: %s", message)


def chunk_length(every: int, limit: int | None = None) -> int:
    """Steps per compiled chunk: at most the limit, and about `CHUNK` where it allows it.

    A divisor of `every` (the steps between evaluations or checkpoints, or all of them) is
    preferred, so that most chunks are of one length.
    """
    cap = min(2 * CHUNK, every, every if limit is None else limit)
    if cap == every:
        return every
    near = [n for n in range(max(cap // 4, 1), cap + 1) if every % n == 0]
    return min(near, key=lambda n: abs(n - CHUNK)) if near else min(CHUNK, cap)


def _crossed(before: int, now: int, every: int) -> bool:
    return now // every > before // every


def result_params(state: Any) -> dict:
    """The parameters that a fit returns: the moving average where one is kept."""
    params = all_params(state["learner"])
    return {**params, **state["ema"]} if "ema" in state else params


def numpy_copy(backend: Backend, tree: Any) -> Any:
    """The tree as numpy arrays that share no memory with it."""
    return tree_map(lambda x: np.array(backend.to_numpy(x)), tree)
