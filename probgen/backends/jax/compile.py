"""A pure function on JAX as a compiled program, which is kept for whoever computes the same.

Each owner of a function traces it anew, which is cheap, so what it reads from outside is never
stale; XLA, which is not cheap, is asked once for each computation. Arrays that a function closes
over become arguments of its program: they may be others the next time, and no program holds them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core

from probgen.backends.compiled_store import programs

# What of an equation says how it is differentiated, which no longer matters.
_RULES = {"bwd", "fwd_jaxpr_thunk", "jvp_jaxpr_fun", "out_trees"}


class Compiled:
    """`fn` with a program for each set of shapes that it meets; within a trace, `fn` jitted.

    Args:
        fn: pure.
        device: the backend's.
        token: what `fn` is, constants included, where the caller knows: where a program is kept for
            it not even a trace is made.
    """

    def __init__(self, fn: Callable, device: str, token: Any = None):
        self.device, self.token = device, token
        self._jitted = jax.jit(fn)
        self._found: dict[Any, _Program] = {}

    def __identity__(self) -> Callable:
        return self._jitted

    def __call__(self, *args: Any) -> Any:
        leaves, form = jax.tree.flatten(args)
        if any(isinstance(x, jax.core.Tracer) for x in leaves):
            return self._jitted(*args)
        signature = (form, jax.config.jax_enable_x64, *map(_form, leaves))
        program = self._found.get(signature)
        if program is None:
            program = self._found[signature] = self._program(args, signature)
        if program is _INLINE:
            return self._jitted(*args)
        return jax.tree.unflatten(program.form, program.run(program.constants, leaves))

    def _program(self, args: tuple, signature: tuple) -> _Program:
        if self.token is None:
            return self._traced(args)
        token = ("jax", self.device, self.token, signature)
        return programs.get(token, lambda: self._traced(args), _Program.nbytes)

    def _traced(self, args: tuple) -> _Program:
        traced = self._jitted.trace(*args)
        jaxpr, constants = traced.jaxpr.jaxpr, traced.jaxpr.consts
        if any(isinstance(x, jax.core.Tracer) for x in constants):
            return _INLINE  # it closes over a value of a trace that is going on
        mark, name = digest(jaxpr), traced.fun_name

        def make() -> Callable:
            def run(constants: list, leaves: list) -> list:
                return jax.core.eval_jaxpr(jaxpr, constants, *leaves)

            run.__name__ = name
            return jax.jit(run)

        run = programs.get(None if mark is None else ("jax", self.device, mark), make)
        return _Program(run, constants, jax.tree.structure(traced.out_info))


def _form(leaf: Any) -> Any:
    """What of an argument a program depends on; of an array what is hashed in no time."""
    if isinstance(leaf, jax.Array):
        return leaf.shape, leaf.dtype, getattr(leaf, "weak_type", None)  # keys have none
    return jax.typeof(leaf)


class _Program(NamedTuple):
    """A jitted `run(constants, leaves)`, which may be others' too, and what is this function's."""

    run: Callable
    constants: list
    form: Any

    def nbytes(self) -> int:
        return sum(x.nbytes for x in self.constants)


_INLINE = _Program(lambda *_: [], [], None)


def fingerprint(fn: Callable, *args: Any) -> str | None:
    """What `fn` computes at these shapes, and its derivatives, constants and names of its outputs
    included; None where that cannot be told, as of a rule of differentiation of a user's own."""
    closed, out = jax.make_jaxpr(fn, return_shape=True)(*args)
    mark = digest(closed.jaxpr, derivatives=True)
    if mark is None:
        return None
    forms = jax.tree.structure(args), jax.tree.structure(out)
    whole = hashlib.sha256(f"{mark} {forms}".encode())
    for constant in closed.consts:
        whole.update(_array(constant))
    return whole.hexdigest()


def digest(jaxpr: core.Jaxpr, derivatives: bool = False) -> str | None:
    """A hash of all that a traced computation does, whatever the values of its constants.

    None where it calls back to Python, has effects, or a part of it cannot be told in words; with
    `derivatives` also where a function has a rule of its own that is not of an installed library.
    """
    try:
        return _Digest(derivatives).of(jaxpr).hex()
    except _Unknown:
        return None


class _Unknown(Exception):
    pass


class _Digest:
    """One walk; a computation that stands at several places is gone through once."""

    def __init__(self, derivatives: bool) -> None:
        self.done: dict[int, bytes] = {}
        self.derivatives = derivatives

    def of(self, jaxpr: core.Jaxpr) -> bytes:
        if id(jaxpr) in self.done:
            return self.done[id(jaxpr)]
        if jaxpr.effects:
            raise _Unknown
        digest, numbers = hashlib.sha256(), {}  # type: ignore[var-annotated]

        def new(variables: Any) -> None:
            for v in variables:
                numbers[v] = len(numbers)
                digest.update(f"{v.aval} {getattr(v.aval, 'weak_type', '')};".encode())

        def read(atoms: Any) -> None:
            for a in atoms:
                if isinstance(a, core.Literal):
                    digest.update(f"{a.aval}".encode() + _array(a.val))
                else:
                    digest.update(f"{numbers[a]},".encode())

        new([*jaxpr.constvars, *jaxpr.invars])
        for eqn in jaxpr.eqns:
            if self.derivatives and "call_jaxpr" in eqn.params and _RULES & eqn.params.keys():
                whose = eqn.params["call_jaxpr"].jaxpr.debug_info.func_filename
                if "site-packages" not in (whose or ""):
                    raise _Unknown
            digest.update(f"\n{eqn.primitive.name} ".encode())
            self.part(eqn.ctx, digest)
            read(eqn.invars)
            for name in sorted(eqn.params.keys() - _RULES):
                digest.update(name.encode() + b"=")
                self.part(eqn.params[name], digest)
            new(eqn.outvars)
        read(jaxpr.outvars)
        self.done[id(jaxpr)] = digest.digest()
        return self.done[id(jaxpr)]

    def part(self, value: Any, digest: Any) -> None:
        """Adds a parameter of an equation."""
        if isinstance(value, core.Jaxpr):
            digest.update(self.of(value))
        elif isinstance(value, core.ClosedJaxpr):
            digest.update(self.of(value.jaxpr))
            for constant in value.consts:
                digest.update(_array(constant))
        elif isinstance(value, np.ndarray | jax.Array):
            digest.update(_array(value))
        elif isinstance(value, tuple | list):
            digest.update(f"{type(value).__name__} {len(value)}".encode())
            for each in value:
                self.part(each, digest)
        elif isinstance(value, Mapping):
            self.part(sorted(value.items()), digest)
        elif type(value).__name__ == "PRNGImpl":  # its functions go by this name
            digest.update(f"{value.name}".encode())
        else:
            text = repr(value)
            if " at 0x" in text:  # a function, or an object that does not say what it is
                raise _Unknown
            digest.update(text.encode() + b";")


def _array(value: Any) -> bytes:
    if isinstance(value, jax.core.Tracer):
        raise _Unknown
    if isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        return str(value.dtype).encode() + _array(jax.random.key_data(value))
    array = np.asarray(value)
    return f"{array.dtype}{array.shape}".encode() + array.tobytes()
