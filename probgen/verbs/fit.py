"""`fit`: one driver for every algorithm that learns.

It knows nothing of models or losses. Here the pieces are checked and put together: data, model,
algorithm, checkpoint; `probgen.engine.loop` then feeds batches to the learner's `update`, chunk by
chunk.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from probgen.backends import resolve
from probgen.backends.protocol import Backend
from probgen.engine import provenance, starting, together
from probgen.engine.auto_guide import automatic
from probgen.engine.batches import BatchFeed, merge_inputs
from probgen.engine.bind import bind
from probgen.engine.callbacks import Callback
from probgen.engine.data_init import from_data
from probgen.engine.data_support import SupportCheck
from probgen.engine.fitted import AnyModel, Fitted
from probgen.engine.learner import AnyAlgorithm, Learner, all_params
from probgen.engine.loop import Loop, numpy_copy, result_params
from probgen.engine.once import one_value
from probgen.errors import (
    AlgorithmError,
    DataError,
    DeclarationError,
    SaveError,
)
from probgen.language.declared import checked
from probgen.language.kinds import Count, CountOrZero, Inputs, Names, OpenShare, PathLike
from probgen.language.memory import ask
from probgen.language.model import Model
from probgen.language.seeds import check_seed
from probgen.progress import log
from probgen.records import atomic, store
from probgen.records import checkpoint as checkpoints
from probgen.records.checkpoint import Kept
from probgen.records.entries import changes
from probgen.records.history import History
from probgen.trees import tree_map
from probgen.verbs.fit_data import held_out_data, number_of_steps, some_rows, source_of

INIT, REPORT, DATA_INIT = 2**31 - 1, 2**31 - 3, 2**31 - 4  # streams of keys beside those of steps


@checked
def fit(
    model: AnyModel,
    data: Any,
    algorithm: AnyAlgorithm,
    *,
    num_epochs: Count | None = None,
    num_steps: Count | None = None,
    batch_size: Count | Literal["auto"] | None = "auto",
    seed: int | None = None,
    backend: str | Backend = "auto",
    device: str = "auto",
    devices: Count | Literal["all"] | None = None,
    shard_parameters: bool = False,
    init: Mapping[str, Any] | None = None,
    freeze: Names = None,
    inputs: Inputs = None,
    names: Names = None,
    validation: Any = None,
    eval_every: Count | None = None,
    ema_decay: OpenShare | None = None,
    gradient_accumulation: Count = 1,
    callbacks: Sequence[Callback] = (),
    checkpoint: PathLike | None = None,
    checkpoint_every: Count = 1000,
    resume: bool = True,
    max_retries: CountOrZero = 4,
    progress_bar: bool = True,
) -> Fitted:
    """Learns the parameters of a model from data.

    Args:
        model: a declaration, or a `Fitted` whose parameters are the start.
        data: of a program without a data plate one value of each observed site, [*event] (a time
            series, one draw of a process). Else rows: array [n, ...] (observes the site "x"), dict
            of arrays by site name, torch `Dataset`, Hugging Face data set, or an iterable of
            batches; see `probgen.data.as_source`. None for an algorithm that needs none:
            `batch_size` then says how many draws a step is made of.
        algorithm: such as `SVI(ELBO(), pg.Adam(1e-3))`.
        num_epochs, num_steps: how long; exactly one of them (data without a size need num_steps).
        batch_size: data per step. "auto": 128, or all where there are fewer, and what a stream of
            batches yields; None: all of them; a number larger than the data is refused.
        seed: an integer of at least 0; same seed, same backend, same machine: same result.
        backend, device: "auto", "torch" or "jax", or a loaded backend; "cpu", "cuda:0".
        devices: over how many devices each batch is spread, `batch_size` rows in all; "all": those
            that there are. On JAX the devices of this process, or of all that `jax.distributed`
            joined; on torch one a process of `torchrun`. The numbers are those of one device, up to
            rounding. None: one device. Callbacks run in every process (`progress.is_first`), files
            are written by the first.
        shard_parameters: splits large parameters, and what the optimiser keeps of them, over the
            devices, for models that do not fit one; else each device has all.
        init: parameters to start from, by net; nets that it does not name start as they would. One
            tree of arrays a net, of the form of `fitted.params[net]`.
        freeze: names of nets that stay as they start, or of parts all of whose nets do ("prior").
        inputs: what the program conditions on. Arrays with one row a datum go along with the data
            (held-out data then carry their own, as entries of the dict); the others are shared.
        names: which entries of a data set observe which sites.
        validation: held-out data, in the form of `data`, evaluated every `eval_every` steps (an
            epoch by default). Of an algorithm with a criterion of its own (`MaximumLikelihood`: the
            gain) the best state is returned.
        ema_decay: keeps an exponential moving average of the parameters, p' = d p' + (1 - d) p,
            and returns it; those of the last step are `fitted.raw`.
        gradient_accumulation: works a batch through in that many parts, for memory.
        callbacks: see `probgen.callbacks`; early stopping is one.
        checkpoint: a folder; the state is kept there every `checkpoint_every` steps and at the end,
            and a fit that finds one of its own there goes on from it (`resume`), also to a larger
            number of steps; to a smaller one is refused. One that a callback stopped is finished,
            and is returned as it is. Its own is one of the same model and algorithm (by their code
            and all that it closes over), data, inputs, validation and given parameters (by their
            bytes), and settings; callbacks, `eval_every`, `max_retries` and the number of steps may
            be others. Of data that are not arrays less is known: of a map-style data set its size,
            form and some items, or size and form where its items are random; of a stream the form
            of its batches. Other weights in a module given to `from_torch` or `from_equinox` are a
            warning and an event of the history.
            One fit at a time writes there: another one is refused by the name of the first. Ctrl-C
            and SIGTERM keep the step at which the chunk that runs ends, and say so.
        max_retries: how often in a row a chunk with NaN or infinity is tried again at half the
            step size before `NonFiniteError`.

    Returns:
        A `Fitted`: model, parameters, history, report.

    Raises:
        MissingSeed, DataError, ShapeError, SupportError, UnknownName, AlgorithmError, SaveError,
        NonFiniteError, DivergedError (by the algorithm's own watch), DeclarationError (a
        `checkpoint`, and a model or algorithm that cannot be told by its content), BackendError
        (`devices` that are not there, or do not divide a batch, or whose processes run another
        fit): each says what was got, what was expected and what to do.
        KeyboardInterrupt, Terminated: after Ctrl-C or SIGTERM.
    """
    seed = check_seed(seed, "fit")
    root = None if checkpoint is None else atomic.at(checkpoint)
    b, declared, params, extras = _start(model, backend, device)
    own = model.constants if isinstance(model, Fitted) else {}
    once = one_value(declared, b, data, names, {**own, **(inputs or {})}, params, seed)
    if once is not None and batch_size not in ("auto", None):
        raise AlgorithmError(
            f"fit: got batch_size={batch_size} for {declared.name!r}, which has no data plate, so "
            f"that {sorted(once)} are observed as one value each, expected batch_size=None; where "
            "the data are rows, put their site into `with pg.data_plate():` and leave out "
            ".expand([n]).to_event(1) or pg.plate of the number of data."
        )
    if once is None:
        source, constants = source_of(declared, data, inputs, names, batch_size, seed, validation)
    else:
        source, constants = source_of(declared, once, None, None, 1, seed, validation)
        constants, _ = merge_inputs(declared, once, inputs, -1)
    constants = {**own, **constants}
    total = number_of_steps(source, num_epochs, num_steps)
    size = source.batch_size
    if size % gradient_accumulation:
        raise AlgorithmError(
            f"gradient_accumulation: got {gradient_accumulation} for batches of {size}, expected "
            "a positive divisor of the batch size."
        )
    if devices is not None:
        b = b.over(devices, size, shard_parameters)
        together.require_divisible(size, b)
    elif shard_parameters:
        raise AlgorithmError(
            "fit: got shard_parameters=True and devices=None, expected several devices to split "
            'parameters over; give devices="all".'
        )
    example = source.example()
    bound, initial = bind(
        declared, b, data=example, constants=constants, params=params, seed=seed,
        num_data=source.size, num_steps=total, accumulate=gradient_accumulation,
        num_draws=size if data is None else None, freeze=freeze or (), is_once=once is not None,
    )  # fmt: skip
    bound.require_rows("fit")
    if data is None:
        numbers, cure = 4 * bound.structure.count(size), "draw fewer at a time"
        ask(f"fit: batch_size={size:,} without data", numbers, cure, DeclarationError)
    params = {**(params or {}), **starting.given(b, initial, init)}
    initial = {**initial, **tree_map(b.asarray, {k: params[k] for k in init or {}})}
    starting.check_freeze(bound)
    known = {*declared.fitted_params(), *params}
    root_key = b.key(seed)
    check = SupportCheck(bound, initial, root_key)
    feed = BatchFeed(source, b, check)
    guide = automatic(declared)
    held_out = None
    if validation is not None:
        held_out = held_out_data(validation, names, example, bound, guide, check)
    learner = algorithm.bind(bound)
    starting.check_feed(learner, algorithm, source, gradient_accumulation)
    if ema_decay is not None and not learner.can_average:
        raise AlgorithmError(
            f"{type(algorithm).__name__}: got ema_decay={ema_decay:g}, expected none: an average "
            "over its steps is none of what it learns; leave ema_decay out."
        )
    if guide is not None and guide.is_point and not hasattr(source, "chunks"):
        raise DataError(
            f"fit: got a stream of data for {guide!r}, expected data of a known size, at all of "
            "which it takes the curvature at the end; collect them into arrays."
        )
    if learner.needs_rows:
        feed.number_rows()
    initial = from_data(bound, initial, feed.first(), b.fold_in(root_key, DATA_INIT), known)
    # Copies, since an update may work in place and the model's own arrays are not ours to change.
    found = tree_map(b.asarray, extras) if extras else None
    k_init = b.fold_in(root_key, INIT)
    state = {"learner": learner.init(b.copy(initial), k_init, feed.first(), b.copy(found))}
    if ema_decay is not None:
        state["ema"] = b.copy(state["learner"]["params"])
    folder: checkpoints.Checkpoints | None = None
    if root is not None or b.num_processes > 1:
        identity = provenance.of_fit(
            declared, algorithm, b, source=source, seed=seed, constants=constants, given=params,
            held_out=held_out, ema_decay=ema_decay, accumulate=gradient_accumulation,
            freeze=freeze or (), extras=extras,
        )  # fmt: skip
        beside = provenance.beside_fit(b, initial)
        first = provenance.content({n: b.to_numpy(v) for n, v in feed.first().items()})
        settings = {
            "number of steps": total, "checkpoint": root, "checkpoint_every": checkpoint_every,
            "resume": resume, "eval_every": eval_every, "max_retries": max_retries,
            "shard_parameters": shard_parameters, "first batch": first,
        }  # fmt: skip
        together.agree(b, {**identity, **beside, **settings})
        if root is not None:
            folder = checkpoints_of(root, identity, beside, b)
    every = eval_every or getattr(source, "steps_per_epoch", None) or 1000
    loop = Loop(
        bound, learner, feed, root_key, total, ema_decay, held_out,
        every, max(size, 1), tuple(callbacks),
        folder, checkpoint_every, max_retries, progress_bar and not b.process,
    )  # fmt: skip
    began = time.perf_counter()
    with contextlib.nullcontext() if folder is None else folder.held():
        kept = folder.newest() if folder is not None and resume else None
        history, step = History(), 0
        if folder is not None and kept is not None:
            _check_steps(kept, total, checkpoint)
            step, history = kept.step, kept.history
            state = loop.best.taken(checkpoints.restore(loop.best.to_keep(state), kept.arrays, b))
            log.info("fit: goes on from step %d of %s", step, checkpoint)
            for text in changes(kept.beside, folder.beside):
                history.events.append(f"step {step}: {text}")
                log.warning("fit: step %d of %s %s", step, checkpoint, text)
        elif learner.note:
            history.events.append(f"step 0: {learner.note}")
            log.warning("fit: %s", learner.note)
        if kept is None or not kept.finished:
            with together.in_touch(b):
                state, step = loop.run(state, step, history)
    state = loop.best.result(state)
    result = bound.settled(result_params(state))
    key = b.fold_in(root_key, REPORT)
    rows = {k: b.asarray(v) for k, v in some_rows(source, example).items()}
    report = learner.report(result, rows, key, history) if learner.report else None
    params = numpy_copy(b, result)
    raw = None
    if ema_decay is not None:
        raw = numpy_copy(b, bound.settled(all_params(state["learner"])))
    if guide is not None and (end := guide.settled(bound, result, source.chunks)) is not None:
        declared, params, raw = declared.with_guide(end.guide), end.params, None
        history.events.append(f"step {step}: {end.words}")
    info = {
        "backend": b.name, "seed": seed, "num_steps": step, "num_data": source.size,
        "seconds": round(time.perf_counter() - began, 3), **b.info(),
        **({} if devices is None else {"devices": b.num_devices, "process": b.process}),
    }  # fmt: skip
    return Fitted(
        declared, params, history, report, info,
        {k: tuple(v.shape[1:]) for k, v in example.items()}, constants,
        {k: str(v.dtype) for k, v in example.items()},
        _extras(learner, state, b), raw,
    )  # fmt: skip


def _start(model: Any, backend: Any, device: str) -> tuple[Backend, Model, Any, Any]:
    """(backend, model, parameters and extras that exist already)."""
    if isinstance(model, Fitted):
        return model.resolve(backend, device), model.model, model.params, model.extras
    return resolve(backend, device, prefer=model.backend), model, None, None


def checkpoints_of(root: Any, identity: Any, beside: Any, b: Backend) -> checkpoints.Checkpoints:
    """The checkpoints of a fit in one process, or in several."""
    if b.num_processes == 1:
        return checkpoints.Checkpoints(root, identity, beside)
    return together.SharedCheckpoints(root, identity, beside, b)


def _extras(learner: Learner, state: Any, backend: Backend) -> dict:
    """What the algorithm has beside the model, numpy; containers become dicts, as when loaded."""
    if learner.extras is None:
        return {}
    tree = numpy_copy(backend, learner.extras(state["learner"]))
    return store.unflatten(store.flatten(tree))


def _check_steps(kept: Kept, total: int, place: Any) -> None:
    """Parameters after more steps than were asked for are another result."""
    if kept.step > total:
        raise SaveError(
            f"{place}: holds this fit after {kept.step} steps, expected at most the {total} that "
            f"are asked for; ask for {kept.step} steps or more to go on, or choose another folder, "
            "or pass resume=False to begin anew."
        )
