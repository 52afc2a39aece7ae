"""`probgen evaluate`: a saved run and words for data in; tables, a page and its JSON out.

All sets are measured in one call of `pg.evaluate`, so that each measure is compiled once; finished
chunks lie in the out folder, and the same call after a kill goes on from them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

import probgen as pg
from probgen.engine.bound import Bound
from probgen.engine.fitted import Fitted
from probgen.errors import AlgorithmError, DataError, OtherRun, SaveError, UnknownName
from probgen.evaluation.detection.records import counted
from probgen.evaluation.detection.scores import count_distinct
from probgen.evaluation.page.evaluation_page import report
from probgen.evaluation.page.folder import PAGE, SHARDS, TABLE, claim, clear, refused
from probgen.evaluation.page.sentences import Loaded, Need, as_pictures, load, need_of
from probgen.inference import ELBO, IWAE, LikelihoodRegret
from probgen.inference.ood import (
    InputComplexity,
    KLTerm,
    LikelihoodRatio,
    NegativeLogLikelihood,
    ReconstructionError,
)
from probgen.inference.ood.other_models import observed_site
from probgen.inference.regret.refit import bind_search
from probgen.language.declared import checked
from probgen.language.dist import did_you_mean
from probgen.language.kinds import Count, CountOrZero, Many, PathLike, between
from probgen.language.seeds import check_seed
from probgen.records import atomic
from probgen.records.evaluation import Evaluation

NAMES = ("nll", "regret", "regret-guide", "complexity", "elbo", "ratio", "kl", "reconstruction")
LEVEL = 0.95  # of the page's intervals
DEFAULT = ("nll", "regret", "complexity", "elbo")


@checked(where="evaluate")
def run(
    run_folder: PathLike,
    data_word: str,
    ood: Sequence[str] = (),
    *,
    measures: Sequence[str] | None = None,
    background: PathLike | None = None,
    num_data: Annotated[int, between(2, 10**9)] = 200,
    particles: Many = 1000,
    seed: int = 0,
    backend: str = "auto",
    chunk_size: Count = 100,
    out: PathLike | None = None,
    overwrite: bool = False,
    shard: str | None = None,
    command: str | None = None,
    say: Callable[[str], None] = logging.getLogger("probgen").info,
    progress_bar: bool = True,
) -> Path:
    """Measures data under a saved model and writes `report.html`, `report.json` and the table.

    Args:
        run_folder: what `Fitted.save_pretrained` wrote.
        data_word: the model's own kind of data, held out from training; see `page.sentences`.
        ood: further sets, such as ["letters", "noise"].
        measures: some of `NAMES`; by default those of `DEFAULT` that suit the model, and "ratio"
            where there is a background.
        background: the run of a model of perturbed data, for "ratio".
        num_data: of each set at most, drawn without replacement.
        particles: of each estimate of log p(x).
        seed: of the choice of data, the noise and the bootstrap.
        chunk_size: data at a time.
        out: a folder; `<run_folder>-evaluation` by default.
        overwrite: replace the page and the table of another evaluation that stand there.
        shard: "3/8" measures the third of eight parts of the data alone, into `out`/shards, and
            writes no page; `merged` then makes the table of all parts, which the same call without
            a shard finds.
        command: what the page says to type for the same again.
        say: gets a line of text after each part.

    Returns:
        The path of the page, or of the part.

    Raises:
        ProbgenError: a run, a file or a word that is not there, data that the model cannot take,
            measures that do not suit it, a folder that cannot be written.
    """
    seed = check_seed(seed, "evaluate")
    fitted = _fitted(run_folder)
    b = fitted.resolve(backend)
    bound, _ = fitted.bind(b)
    site = observed_site(bound, "evaluate")
    if set(fitted.shapes) != {site}:
        raise AlgorithmError(
            f"{run_folder}: got a model of the data {sorted(fitted.shapes)}, expected one of "
            f"{site!r} alone, since one file holds one array; use pg.evaluate and "
            "probgen.evaluation.report from Python."
        )
    need = need_of(bound, fitted.shapes, site)
    chosen, left_out = _measures(measures, bound, need, particles, background)
    sets = _sets(data_word, ood, need, num_data, seed)
    distinct = {s.name: count_distinct(s.values) for s in sets}
    notes = [*(f"**{s.name}**: {'; '.join(s.done)}." for s in sets if s.done), *left_out]
    notes += [
        f"**{s.name}**: {len(s.values):,} data, {distinct[s.name]:,} distinct; copies count once "
        "in intervals and tests."
        for s in sets
        if distinct[s.name] < len(s.values)
    ]
    say(f"model    {fitted.model.name}, {fitted.num_parameters():,} parameters, on {b.name}")
    for each in sets:
        size = counted(len(each.values), distinct[each.name])
        say(f"data     {size} {each.name}{_said(each)}")
    for text in left_out:
        say(f"note     {text}")
    folder = Path(out) if out is not None else Path(f"{os.path.normpath(run_folder)}-evaluation")
    settings = {
        "run": str(run_folder), "data": data_word, "ood": list(ood), "num_data": num_data,
        "measures": [repr(m) for m in chosen], "particles": particles,
        "background": None if background is None else str(background), "chunk_size": chunk_size,
    }  # fmt: skip
    if shard is not None:
        place = folder / SHARDS / shard.strip().replace("/", "-of-")
        pg.evaluate(
            fitted, {site: np.concatenate([s.values for s in sets])}, chosen, seed=seed,
            chunk_size=chunk_size, path=place, backend=b, shard=shard, progress_bar=progress_bar,
        )  # fmt: skip
        say(f"wrote    {place}; probgen merge {folder} makes the table once all shards are there")
        return place
    claim(folder, run_folder, {**settings, "level": LEVEL, "seed": seed}, overwrite=overwrite)
    x = np.concatenate([s.values for s in sets])  # all in one table: a measure is compiled once

    def measured() -> Evaluation:
        return pg.evaluate(
            fitted, {site: x}, chosen, seed=seed, chunk_size=chunk_size, path=folder / TABLE,
            backend=b, progress_bar=progress_bar,
        )  # fmt: skip

    what = f"{', '.join(m.name for m in chosen)} of {len(x):,} data"
    table = _table(measured, folder, what, overwrite, say)
    tables = split_table(table, {s.name: len(s.values) for s in sets}, chosen)
    pictures = {s.name: as_pictures(s.values, need) for s in sets}
    images = {k: v for k, v in pictures.items() if v is not None}
    first = sets[0].name
    path = report(
        fitted, tables.pop(first), tables, path=folder / PAGE, name=first, images=images or None,
        command=command, notes=notes, settings=settings, num_distinct=distinct, level=LEVEL,
        seed=seed, progress_bar=progress_bar,
    )  # fmt: skip
    say(f"wrote    {path}, {path.with_suffix('.json')} and {folder / TABLE}")
    return path


def _fitted(run_folder: str | os.PathLike) -> Fitted:
    try:
        return pg.Fitted.from_pretrained(run_folder)
    except SaveError as error:
        if "model=" not in str(error):
            if "save_pretrained" in str(error):
                raise
            raise SaveError(
                f"{str(error).rstrip('.')}; give RUN, a folder from save_pretrained such as "
                "runs/demo/model."
            ) from error
        raise SaveError(
            f"{run_folder}: got a model that is a function of yours, or holds one, which no file "
            "does, expected one of declarations alone; this command cannot be given it: from "
            "Python, load it with pg.Fitted.from_pretrained(path, model=...), and use pg.evaluate "
            "and probgen.evaluation.report."
        ) from error


def _said(loaded: Loaded) -> str:
    return f" ({'; '.join(loaded.done)})" if loaded.done else ""


def _sets(data_word: str, ood: Sequence[str], need: Need, num_data: int, seed: int) -> list[Loaded]:
    own = load(data_word, need, count=num_data, seed=seed)
    sets = [own, *(load(w, need, count=num_data, seed=seed, like=own) for w in ood)]
    names = [s.name for s in sets]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise DataError(
            f"evaluate: got two sets called {twice[0]!r}, expected a name for each; rename a file, "
            "or leave one out."
        )
    return sets


# ---- measures ------------------------------------------------------------------------------------


def _measures(
    names: Sequence[str] | None,
    bound: Bound,
    need: Need,
    particles: int,
    background: str | os.PathLike | None,
) -> tuple[list[Any], list[str]]:
    """The measures asked for, and a sentence for each default one that does not suit the model."""
    left_out: list[str] = []
    if names is None:
        bound.require_guide("evaluate")
        names = [n for n in DEFAULT if n != "complexity" or not (why := _no_code(need))]
        if "complexity" not in names:
            left_out.append(f"complexity is left out: {why}.")
        names += ["ratio"] if background is not None else []
    for name in names:
        if name not in NAMES:
            raise UnknownName(
                f"evaluate: got the measure {name!r}, expected some of {', '.join(NAMES)}"
                f"{did_you_mean(name, NAMES) or '; give some of these'}".removesuffix("?")
                + "."
            )
    if ("ratio" in names) != (background is not None):
        raise AlgorithmError(
            f"evaluate: got the measures {', '.join(names)} and "
            f"{'a' if background is not None else 'no'} background, expected both or neither of "
            "ratio and --background RUN (a model of perturbed data)."
        )
    return [_measure(name, bound, need, particles, background) for name in dict.fromkeys(names)
            ], left_out  # fmt: skip


def _no_code(need: Need) -> str:
    """Why a compressor's code length cannot be compared with this model; "" where it can."""
    if not need.is_discrete or need.levels is None:
        return "the model has a density, or levels that it does not tell, and no code length"
    return "" if need.image_shape is not None else "the data are no pictures"


def _measure(
    name: str, bound: Bound, need: Need, particles: int, background: str | os.PathLike | None
) -> Any:
    if name == "nll":
        return NegativeLogLikelihood(particles)
    if name == "regret":
        return LikelihoodRegret(search=_search(bound))
    if name == "regret-guide":
        return LikelihoodRegret()
    if name == "complexity":
        flat = need.image_shape if len(need.shape) == 1 else None
        return InputComplexity(IWAE(particles), image_shape=flat)
    if name == "ratio":
        return LikelihoodRatio(pg.Fitted.from_pretrained(str(background)), particles)
    if name == "kl":
        return KLTerm()
    return ELBO(num_particles=16) if name == "elbo" else ReconstructionError()


def _search(bound: Bound) -> Literal["guide", "posterior"]:
    """The cheap search where the guide allows it, else the whole guide's."""
    try:
        bind_search(bound, "regret", "posterior", False, "guide")
    except AlgorithmError:
        return "guide"
    return "posterior"


# ---- measuring -----------------------------------------------------------------------------------


def _table(
    measured: Callable[[], Evaluation],
    folder: Path,
    what: str,
    overwrite: bool,
    say: Callable[[str], None],
) -> Evaluation:
    """All sets in one table; the one that stands there, or its chunks, where they are of the same
    evaluation."""
    is_there = (atomic.standing(atomic.at(folder / TABLE)) / "config.json").exists()
    if not is_there:
        say(f"measure  {what}")
    try:
        table = measured()
    except OtherRun as error:
        if not overwrite:
            raise refused(folder / TABLE, error) from error
        clear(folder)
        say(f"measure  {what}")
        return measured()
    if is_there:
        say(f"measure  kept from {folder / TABLE}, which these very arguments made")
    return table


@checked
def split_table(
    table: Evaluation, sizes: Mapping[str, CountOrZero], measures: Sequence[Any]
) -> dict[str, Evaluation]:
    """A table of several sets, one after the other, as one table a set with its own warnings.

    Args:
        sizes: {set: how many data}, in the table's order.
        measures: what made the table; their warnings are about the data of one set.

    Raises:
        DataError: sizes that do not add up to the table's.
    """
    if sum(sizes.values()) != table.num_data:
        raise DataError(
            f"split_table: got sizes {dict(sizes)}, expected them to add up to the table's "
            f"{table.num_data} data."
        )
    out, first = {}, 0
    for name, size in sizes.items():
        part = table.select(np.arange(first, first + size))
        first += size
        values = {m: {str(q): v.values for q, v in part[m].data_vars.items()} for m in part.names}
        said = {m.name: m.warnings(values[m.name]) for m in measures if hasattr(m, "warnings")}
        out[name] = Evaluation.from_values(
            values, units=part.units, larger_is_stranger=part.larger_is_stranger, warnings=said,
            shared_error=part.shared_error, info=part.info,
        )  # fmt: skip
    return out
