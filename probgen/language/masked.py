"""Refuses numpy's masked arrays, whose fill values would otherwise be read as numbers.

`numpy.asarray` drops a mask without a word, so a value marked as missing comes back as the number
that stood for it, such as -999. One rule for data, inputs, `obs=` and distributions' arguments.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from probgen.errors import DataError


def refuse_masked(value: Any, where: str) -> None:
    """Refuses a masked array with masked entries, alone or in a list; others pass.

    Raises:
        DataError: says how many, and how missing values are declared.
    """
    for each in value if isinstance(value, list | tuple) else (value,):
        if isinstance(each, np.ma.MaskedArray) and np.ma.getmaskarray(each).any():
            count = int(np.ma.getmaskarray(each).sum())
            raise DataError(
                f"{where}: got a masked array with {count} of {each.size} entries masked, expected "
                "plain numbers, since a mask is lost where arrays become tensors; fill it "
                "(.filled(0.0)), give ~mask as an input, and write "
                "pg.sample(name, distribution.mask(is_observed)), or leave those data out."
            )
