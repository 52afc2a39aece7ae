"""Progress bars: tqdm on a terminal, silence elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np


@contextlib.contextmanager
def bar(
    total: int, initial: int = 0, wanted: bool = True, unit: str = "step"
) -> Iterator[Callable]:
    """Gives `shown(count, metrics)`, which moves the bar and shows the main metric's mean."""
    if not wanted or sys.stderr is None or not sys.stderr.isatty():
        yield lambda count, metrics=None: None
        return
    from tqdm.auto import tqdm

    with tqdm(total=total, initial=initial, unit=unit, dynamic_ncols=True) as shown:

        def move(count: int, metrics: dict[str, Any] | None = None) -> None:
            for name in ("elbo", "iwae", "loss"):
                if metrics and name in metrics:
                    shown.set_postfix({name: f"{float(np.mean(metrics[name])):.4g}"})
                    break
            shown.update(count)

        yield move
