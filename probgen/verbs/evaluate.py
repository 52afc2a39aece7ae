"""`evaluate`: how good is a model, per datum, with what error?"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from probgen.backends.protocol import Backend
from probgen.data.sources import ArraySource, LazySource, as_source
from probgen.engine import provenance
from probgen.engine.batches import merge_inputs
from probgen.engine.fitted import AnyFitted
from probgen.engine.interrupt import asked_to_stop
from probgen.engine.measure import Measure
from probgen.engine.once import one_value
from probgen.engine.workers import Pool, each
from probgen.errors import AlgorithmError, DataError
from probgen.language.content import RowsMark
from probgen.language.declared import checked
from probgen.language.kinds import Count, Inputs, Names, PathLike
from probgen.language.seeds import check_seed
from probgen.progress import bar
from probgen.records import places, store
from probgen.records.chunks import ChunkStore
from probgen.records.entries import AGAIN, require_same
from probgen.records.evaluation import Evaluation, check_name
from probgen.verbs.scoring import Scorer, Scoring, Values
from probgen.verbs.tables import Columns, Part, described, settled

CHUNK = 100


@checked
def evaluate(
    fitted: AnyFitted,
    data: Any,
    measures: Iterable[Measure],
    *,
    seed: int | None = None,
    inputs: Inputs = None,
    names: Names = None,
    chunk_size: Count = CHUNK,
    path: PathLike | None = None,
    backend: str | Backend = "auto",
    device: str = "auto",
    executor: Pool | None = None,
    shard: str | None = None,
    progress_bar: bool = True,
) -> Evaluation:
    """Measures each datum, in chunks of `chunk_size`, so that memory does not grow with the data.

    The noise belongs to the datum (its place in the data) and the measure: chunk size, order and
    choice of the other measures change no number beyond floating-point rounding.

    Args:
        fitted: model and parameters.
        data: as in `fit`; memory-mapped arrays and map-style data sets are read chunk by chunk. Of
            a program without a data plate (a time series, one draw of a process) they are one
            value of each site, and the table has one row: log p(data), by `ELBO` or `IWAE`.
        measures: such as `[ELBO(num_particles=16), IWAE(num_particles=1000)]`.
        seed: an integer.
        inputs: further arguments of the program or the guide.
        names: of the entries of the data, as in `fit`.
        chunk_size: data at a time.
        path: a folder for the table, or an address of fsspec's such as "s3://bucket/scores" (the
            extra `cluster`; it has no lock). `Evaluation.load(path, partial=True)` reads what is
            there so far. Finished chunks are written beside it as they come; the same
            call after a kill (with the same `chunk_size`) reads them and goes on, where model,
            measures, inputs and data are the same by their content (`probgen.language.identity`).
            The table is there when the call returns, and a further call of the same returns it. One
            call at a time writes there; Ctrl-C and SIGTERM keep the chunk that runs, and say so.
        backend, device: those of the fit by default.
        executor: any `concurrent.futures.Executor`, such as Dask's `client.get_executor()`, whose
            workers score chunks; or a function that makes one, which is asked again where a pool
            ends with a worker that is killed. No number changes: on machines and threads alike the
            table is the same to the bit. A device of "auto" is each worker's own.
        shard: "3/8" scores the third of eight parts of the data, for job arrays, and needs a `path`
            of its own; the parts are cut between chunks. Its table is a part, whose intervals are
            not yet judged by all data; `pg.merge` makes the whole of all parts.

    Raises:
        MissingSeed, DataError, SupportError, AlgorithmError: what was got, expected, and the cure.
        NonFiniteError: a measure gave NaN for a datum (says which).
        SaveError: `path` cannot be written, or holds something else, or chunks or the table of
            another evaluation (says what differs).
        DeclarationError: a `path` or an executor, and a model or measure that cannot be told by its
            content.
        DeclarationError: a `shard` that is no part, or more parts than there are chunks.
        WorkerError: workers of another probgen or model; work that cannot be pickled; a pool that
            broke.
        KeyboardInterrupt, Terminated: after Ctrl-C or SIGTERM.
    """
    seed = check_seed(seed, "evaluate")
    chosen = _checked(measures)
    if path is not None:
        path = places.at(path)
        store.check_place(path, "evaluation")
    b = fitted.resolve(backend, device)
    known = {**fitted.constants, **(inputs or {})}
    once = one_value(fitted.model, b, data, names, known, fitted.params, seed)
    if once is not None:
        _require_one_value(chosen, fitted.model.name, once)
        data, names = once, None
    source = as_source(data, batch_size=None, seed=0, names=names)
    if not isinstance(source, ArraySource | LazySource):
        raise DataError(
            "evaluate: got a stream, expected data of a known size; collect it into arrays first."
        )
    size, example = source.size, source.take(np.arange(1))
    # No input has one row a datum where there are no rows.
    num_rows = size if once is None else -1
    constants, per_datum = merge_inputs(fitted.model, example, inputs, size=num_rows)
    fitted = dataclasses.replace(fitted, constants={**fitted.constants, **constants})

    def take(rows: np.ndarray) -> dict[str, np.ndarray]:
        return {**source.take(rows), **{k: v[rows] for k, v in per_datum.items()}}

    def read(first: int, stop: int) -> dict[str, np.ndarray]:
        rows = (
            {k: v[first:stop] for k, v in source.arrays.items()}
            if isinstance(source, ArraySource)
            else source.take(np.arange(first, stop))
        )
        return {**rows, **{k: v[first:stop] for k, v in per_datum.items()}}

    chunk_size = min(chunk_size, size)
    scoring = Scoring(
        fitted, chosen, seed, b.name if isinstance(backend, str) else b, device, size, chunk_size,
        names, read(0, 1), once is not None,
    )  # fmt: skip
    scorer = Scorer(scoring, b)
    part = None if shard is None else Part.of(shard, size, chunk_size, path)
    here = range(size) if part is None else part.rows
    spans = [range(i, min(i + chunk_size, here.stop)) for i in here[::chunk_size]]
    made = {} if path is None else provenance.of_evaluation(fitted, chosen, seed, b)
    made |= {} if part is None else part.entries(provenance.probed(size, take))
    of = {**made, "chunk_size": chunk_size}
    kept = None if path is None else ChunkStore(path, of, described(chosen))
    seen, table = RowsMark(), Columns(here)

    with contextlib.closing(scorer), kept.held() if kept else contextlib.nullcontext():
        if kept and store.check_place(kept.table, "evaluation"):
            for span in spans:
                seen.add(read(span.start, span.stop), span.start)
            found = _finished(kept.table, {**made, "data": seen.digest()})
            kept.clear()  # of a process that was killed before it did
            return found
        with (
            asked_to_stop(kept is not None) as asked,
            bar(len(here), wanted=progress_bar, unit="datum") as shown,
        ):
            sent: dict[int, dict[str, np.ndarray]] = {}

            def missing() -> Iterator[tuple[int, tuple]]:
                for span in spans:
                    first, rows = span.start, read(span.start, span.stop)
                    seen.add(rows, first)
                    values = kept.read(first, rows) if kept else None
                    if values is None:
                        sent[first] = rows
                        yield first, (first, rows)
                    else:
                        done(first, values)

            def done(first: int, values: Values) -> None:
                shown(table.put(first, values))
                asked.stop(
                    f"evaluate: stopped after {table.is_filled.sum()} of {len(here)} data, which "
                    f"are kept beside {path}; the same again goes on from there."
                )

            for first, values in each(executor, scoring, scorer, missing()):
                rows = sent.pop(first)
                if kept:
                    kept.write(first, rows, values)
                done(first, values)
        info = {"backend": b.name, "seed": seed, "made": made, "data": seen.digest(), **b.info()}
        bound = scorer.bound
        more = [n for n in bound.observed if fitted.shapes and n not in fitted.shapes]
        common = [*_joint(more), *bound.left_out]
        if part is None:
            out = settled(chosen, table.whole(), info, common)
        else:
            out = part.table(chosen, table.whole(), info, common)
        if kept:
            out.save(kept.table)
            kept.clear()
    return out


def _checked(measures: Any) -> list[Measure]:
    chosen = list(measures) if isinstance(measures, Iterable) else [measures]
    if not chosen:
        raise AlgorithmError("evaluate: got no measure, expected a list such as [IWAE(1000)].")
    for measure in chosen:
        if isinstance(measure, type):
            raise AlgorithmError(
                f"evaluate: got the class {measure.__name__}, expected a measure; write "
                f"{measure.__name__}(...) with its settings."
            )
        if not hasattr(measure, "bind_measure"):
            raise AlgorithmError(
                f"evaluate: got {measure!r} among the measures, which gives no number per datum, "
                "expected one such as IWAE(num_particles=1000) or another of probgen.inference."
            )
    labels = [m.name for m in chosen]
    for name in labels:
        check_name(name)
    twice = sorted({n for n in labels if labels.count(n) > 1})
    if twice:
        raise AlgorithmError(
            f"evaluate: got two measures named {twice[0]!r}, expected each name once; where they "
            "differ by their reference data or models, give label=..., or evaluate them apart."
        )
    return chosen


def _require_one_value(chosen: list[Measure], model: str, once: dict[str, np.ndarray]) -> None:
    others = [m.name for m in chosen if not getattr(m, "takes_one_value", False)]
    if others:
        raise AlgorithmError(
            f"evaluate: got {others[0]} for {model!r}, which has no data plate, so that "
            f"{sorted(once)} are observed as one value each, expected a measure of all of it: "
            "ELBO or IWAE, whose one number is log p(data); what compares data, or holds each "
            "against the others, needs rows of them, in `with pg.data_plate():`."
        )


def _joint(more: list[str]) -> list[str]:
    if not more:
        return []
    names = ", ".join(map(repr, more))
    return [
        f"the data give {names}, which the fit did not observe: it counts as observed, and a "
        "likelihood is the joint one; leave it out of the data if it is latent."
    ]


def _finished(path: Any, made: dict[str, Any]) -> Evaluation:
    """The table that stands at `path`, if it is the one that was asked for."""
    table = Evaluation.load(path)
    found = {**table.info.get("made", {}), "data": table.info.get("data")}
    require_same(path, found, made, AGAIN)
    return table
