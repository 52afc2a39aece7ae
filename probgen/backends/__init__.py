"""Backends: the only rooms that know a framework.

    load("torch")   Pyro on PyTorch          load("jax")   NumPyro on JAX

Both answer to one protocol, `probgen.backends.protocol.Backend`. A backend is a value, not a
setting: two of them live side by side in one process, and nothing here is process-wide.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from probgen.backends import compiled_store
from probgen.backends.protocol import Backend, Site
from probgen.errors import BackendError
from probgen.language.wording import shown

__all__ = ["Backend", "Site", "available", "forget", "load", "resolve"]

_PACKAGES = {"torch": ("torch", "pyro"), "jax": ("jax", "numpyro", "optax")}


def available() -> dict[str, bool]:
    """Which backends could be loaded here: name -> all its packages are installed."""
    return {name: not _missing(name) for name in _PACKAGES}


def _missing(name: str) -> list[str]:
    def found(package: str) -> bool:
        try:
            return importlib.util.find_spec(package) is not None
        except (ImportError, ValueError):
            return False

    return [p for p in _PACKAGES[name] if not found(p)]


def load(name: str, device: str = "auto", **options: Any) -> Backend:
    """The backend of that name on that device.

    Args:
        name: "torch" or "jax".
        device: "auto", "cpu", "cuda", "cuda:0", ...
        options: of the backend; torch has `compile="auto" | "inductor" | "graph" | "live"`.

    Raises:
        BackendError: unknown name, packages missing (says which extra to install), no such device.
    """
    if name not in _PACKAGES:
        raise BackendError(
            f"backend: got {name!r}, expected 'auto', 'torch' or 'jax' (or a loaded backend)."
        )
    try:
        if name == "torch":
            from probgen.backends.torch.backend import TorchBackend

            return TorchBackend(device, **options)
        from probgen.backends.jax.backend import JaxBackend

        return JaxBackend(device, **options)
    except ImportError as error:
        raise BackendError(
            f"backend {name!r} needs {' and '.join(_PACKAGES[name])}, and {error.name or error} "
            f"could not be imported; install them with: pip install 'probgen[{name}]'"
        ) from error


def resolve(backend: str | Backend = "auto", device: str = "auto", prefer: str = "") -> Backend:
    """`load`, with "auto" understood: a CUDA torch, else JAX, else torch; `prefer` goes first.

    Raises:
        BackendError: neither backend is installed.
    """
    if not isinstance(backend, str):
        if isinstance(backend, type) or not hasattr(backend, "ops"):
            raise BackendError(
                f"backend: got {shown(backend)}, expected 'auto', 'torch', 'jax' or a loaded "
                "backend; leave it out for 'auto'."
            )
        return backend
    if backend != "auto":
        return load(backend, device)
    there = [name for name, ok in available().items() if ok]
    if not there:
        raise BackendError(
            "backend 'auto': neither torch nor jax is installed; "
            "install one with: pip install 'probgen[torch]' or pip install 'probgen[jax]'"
        )
    if prefer in there:
        return load(prefer, device)
    if "torch" in there and ("jax" not in there or _torch_has_cuda()):
        return load("torch", device)
    return load("jax", device)


def forget() -> None:
    """Drops all that was compiled and kept in this process: for memory, it changes no number."""
    compiled_store.programs.clear()


def _torch_has_cuda() -> bool:
    from probgen.backends.torch.backend import has_cuda

    return has_cuda()
