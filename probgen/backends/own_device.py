"""Which device of its kind a thread computes on, where each thread of a process has one.

A backend that is made in such a thread, or is unpickled there, is on that device; `None`, the
default, leaves it where its name says.
"""

from __future__ import annotations

from contextvars import ContextVar

own: ContextVar[int | None] = ContextVar("own device", default=None)
