"""Numbers in float64, for tests that compare them closely: the framework's own switch, for a while.

Parameters that are to be float64 must be given so: what is loaded stays as it was.
"""

import contextlib


@contextlib.contextmanager
def float64(*backends):
    """Inside, float64 is the default of each backend's framework, draws included."""
    with contextlib.ExitStack() as stack:
        for b in backends:
            stack.enter_context(_torch() if b.name == "torch" else _jax())
        yield


@contextlib.contextmanager
def _torch():
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _jax():
    import jax

    return jax.enable_x64(True)
