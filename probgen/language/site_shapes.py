"""Whether a value has the shape of its site: one rule, however the value was given.

    value: [*plates, *event], every axis in full

No axis is stretched. One observation in a plate of thirty would count thirty times, and [n, 1]
against [n] would make n x n terms of n data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from probgen.errors import ShapeError


def check_value(
    what: str,
    got: Sequence[int],
    plates: Sequence[int | str],
    event: Sequence[int],
    *,
    where: Mapping[str, int | str],
    is_local: bool,
) -> None:
    """Refuses a value whose axes are not those of its site.

    Args:
        what: how the message calls it, such as "data 'x'".
        got: its shape.
        plates: sizes of the site's plates from left to right; words where any size will do.
        event: shape of one event.
        where: plates of the site, outermost first, with their sizes.
        is_local: the data plate is among them.

    Raises:
        ShapeError: says which axes are wanted, and how to get there.
    """
    want = (*plates, *event)
    fits = len(got) == len(want) and all(
        isinstance(w, str) or g == w for g, w in zip(got, want, strict=True)
    )
    if fits:
        return
    place = (
        f"stands in {_listed(where)}" if where else "stands outside all plates, so has one value"
    )
    cure = (
        "reshape the values, or change the declaration's output shape"
        if is_local
        else "reshape the values, or, where their first axis is that of the data, put the site into"
        " `with pg.data_plate():` and leave its own plate, or .expand, of that size out"
    )
    raise ShapeError(
        f"{what}: got shape {tuple(got)}, expected ({', '.join(map(str, want))}"
        f"{',' if len(want) == 1 else ''}), since the site {place} with events of shape "
        f"{tuple(event)}, and no axis is stretched; {cure}."
    )


def _listed(where: Mapping[str, int | str]) -> str:
    plates = ", ".join(f"{name!r} of {size}" for name, size in where.items())
    return f"the plate{'s' if len(where) > 1 else ''} {plates}"


def batch_words(
    name: str, got: tuple[int, ...], plates: tuple[int, ...], extra: int, is_row: bool
) -> str:
    """What to say of a distribution whose batch shape is not that of its plates.

    Args:
        extra: how many axes too many there are.
        is_row: as many axes as plates, inside the data plate: rows that do not come with the data.
    """
    cure = (
        f"if the further axes belong to one draw, add .to_event({extra}) to the distribution, and "
        "if they repeat it, open a pg.plate."
    )
    if is_row:
        cure = (
            "the program runs on some of the data at a time, so what has one row a datum must come "
            "with them: make it an argument of the program and give it by inputs={...}. Only if "
            f"that axis is no axis of data, {cure}"
        )
    return (
        f"site {name!r}: got a distribution of batch shape {got}, expected "
        f"{'that of its plates, ' + str(plates) if plates else 'none outside of a plate'}; {cure}"
    )
