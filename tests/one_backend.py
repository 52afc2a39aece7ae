"""Commands whose work is tested on both backends run on one of them in `make test`."""

import pytest

from probgen import backends

HERE = [name for name, is_here in backends.available().items() if is_here]


def first_of(names, repeated):
    """A test that asks for `backend_name` runs on the first; on the others under this mark."""
    others = [pytest.param(name, marks=repeated) for name in names[1:]]
    return pytest.mark.parametrize("backend_name", [*names[:1], *others], indirect=True)
