"""Counts what a backend compiles: XLA's programs on JAX, traced graphs on torch."""

import contextlib

COMPILED = "/jax/core/compile/backend_compile_duration"


class Compilations:
    """`with Compilations(name) as seen`: then `seen.names` are the functions compiled inside."""

    def __init__(self, backend_name):
        self.names, self._open = [], contextlib.ExitStack()
        self._enter = {"jax": self._jax, "torch": self._torch}[backend_name]

    def __enter__(self):
        self._enter()
        return self

    def __exit__(self, *error):
        self._open.close()

    def _jax(self):
        import jax

        def heard(event, duration, fun_name="", **_):
            if event == COMPILED:
                self.names.append(fun_name)

        jax.monitoring.register_event_duration_secs_listener(heard)
        self._open.callback(jax.monitoring.unregister_event_duration_listener, heard)

    def _torch(self):
        from probgen.backends.torch.graph import Graph

        build = Graph._build

        def heard(graph, fn, *rest):
            self.names.append(getattr(fn, "__qualname__", repr(fn)))
            build(graph, fn, *rest)

        Graph._build = heard
        self._open.callback(setattr, Graph, "_build", build)
