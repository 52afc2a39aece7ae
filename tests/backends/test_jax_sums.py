"""JAX is right on a CPU, whoever starts it: flags keep racing reductions and hanging solves out.

Each case is a process of its own, since XLA reads its flags once, when JAX's client starts.
"""

import importlib.util
import os
import subprocess
import sys
import textwrap

import compiling
import pytest

from probgen.backends import xla_flags
from probgen.backends.xla_flags import CURE, FLAG, IN_ORDER, ORDER

needs_jax = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("jax", "numpyro", "optax"))), reason="jax not installed"
)
touched = pytest.mark.skipif(not xla_flags.is_touched(), reason="this jaxlib sums by itself")

# Three sums of broadcasts; without the flag jaxlib 0.10.2 gave several results for each, on two
# cores, within a second (thousands of them for the first).
STRESS = """
import sys, time
import numpy as np
import jax, jax.numpy as jnp

ones = jnp.ones((1024, 1))
u = jnp.asarray(np.random.default_rng(0).normal(size=(9000, 2)).astype("float32"))
sums = {
    "all": (lambda a: jnp.sum(jnp.broadcast_to(a, (2, 1024, 1024))), ones),
    "mean over particles": (
        lambda u: jnp.mean(jnp.reshape(jnp.broadcast_to(u, (3, 9000, 2)), (-1, 2)), axis=0), u),
    "two axes": (lambda u: jnp.sum(jnp.broadcast_to(u, (3, 9000, 2)), axis=(0, 1)), u),
}
right = {"all": 2.0**21, "mean over particles": np.asarray(u, np.float64).mean(0),
         "two axes": 3 * np.asarray(u, np.float64).sum(0)}
for name, (fn, x) in sums.items():
    fn, found, calls, began = jax.jit(fn), set(), 0, time.monotonic()
    while calls < 50 or time.monotonic() - began < float(sys.argv[1]):
        found.add(np.asarray(fn(x)).tobytes())
        calls += 1
    assert len(found) == 1, f"{name}: {len(found)} different results in {calls} calls"
    np.testing.assert_allclose(np.frombuffer(*found, np.float32), right[name], rtol=1e-3)
    print(name, calls)
x = jnp.stack((jnp.arange(32769.0), jnp.zeros(32769), jnp.zeros(32769)), axis=1)
f = lambda x: jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2))(x)
assert float(jax.jit(f)(x)[-1]) == 2.0**30
"""


def start(
    code: str, *arguments: str, flags: str | None = None, in_haste: bool = False
) -> subprocess.Popen:
    """A fresh Python with XLA_FLAGS as given, or none, but for those that compile `in_haste`."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    if flags is not None:
        environment["XLA_FLAGS"] = flags
    if in_haste:
        compiling.hasten(environment)
    words = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    return subprocess.Popen(
        words, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def end(process: subprocess.Popen) -> str:
    out, error = process.communicate(timeout=1200)
    assert process.returncode == 0, error[-2000:]
    return out


def stress(seconds: float) -> None:
    """Two processes of all cores each at once: whatever can race, races."""
    running = [start("import probgen\n" + STRESS, str(seconds)) for _ in range(2)]
    for process in running:
        end(process)


@needs_jax
def test_a_sum_of_a_broadcast_has_one_result():
    stress(0.5)


@needs_jax
@pytest.mark.slow
def test_a_sum_of_a_broadcast_has_one_result_for_minutes():
    stress(40.0)


SOLVES = """
import sys
import probgen
import jax, jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

roots = jnp.broadcast_to(jnp.eye(20), (10, 20, 20))
right = [jnp.full((10, 20, 1437), float(i + 1)) for i in range(2)]
both = jax.jit(lambda r, xs: sum(jnp.sum(solve_triangular(r + i * r, x)) for i, x in enumerate(xs)))
for _ in range(50):
    found = float(both(roots, right))
print(found)
"""


@needs_jax
def test_two_batches_of_triangular_systems_do_not_wait_for_each_other():
    """Without the flag they did for ever on two cores, at once. I x = 1 and 2 I x = 2."""
    solves = start(SOLVES)
    try:
        assert float(solves.communicate(timeout=300)[0]) == 2 * 10 * 20 * 1437
    finally:
        solves.kill()


@pytest.mark.parametrize(
    "flags, expected",
    [
        ("", f"{CURE} {IN_ORDER}"),
        ("--xla_cpu_a=false", f"--xla_cpu_a=false {CURE} {IN_ORDER}"),
        (f"{FLAG}=+dot", f"{FLAG}=+dot {CURE} {IN_ORDER}"),
        (f"{FLAG}=dot", f"{FLAG}=dot {CURE} {IN_ORDER}"),
        (CURE, f"{CURE} {IN_ORDER}"),
        (f"{FLAG}=+dot,-reduce", f"{FLAG}=+dot,-reduce {IN_ORDER}"),
        (f"{FLAG}=dot,reduce", f"{FLAG}=dot,reduce {IN_ORDER}"),
        (f"{CURE} {FLAG}=reduce", f"{CURE} {FLAG}=reduce {IN_ORDER}"),
        (f"{ORDER}=true {CURE}", f"{ORDER}=true {CURE}"),
    ],
)
def test_what_a_user_has_in_xla_flags_is_kept(flags, expected, monkeypatch):
    monkeypatch.setattr(xla_flags, "is_touched", lambda: True)
    monkeypatch.setattr(xla_flags, "is_known", lambda flag: True)
    environment = {"XLA_FLAGS": flags}
    for _ in range(2):  # a second import, or a child, adds nothing
        xla_flags.protect(environment)
        assert environment["XLA_FLAGS"] == expected


def test_a_file_of_flags_is_kept_too(tmp_path, monkeypatch):
    monkeypatch.setattr(xla_flags, "is_touched", lambda: True)
    monkeypatch.setattr(xla_flags, "is_known", lambda flag: True)
    path = tmp_path / "flags"
    path.write_text("--xla_a=1\n--xla_b=2\n")
    environment = {"XLA_FLAGS": str(path)}
    xla_flags.protect(environment)
    assert environment["XLA_FLAGS"] == f"--xla_a=1 --xla_b=2 {CURE} {IN_ORDER}"


@pytest.mark.parametrize("version, known", [("0.10.1", True), ("0.9.2", True), ("0.12.0", False)])
def test_nothing_is_set_that_jaxlib_does_not_need_or_know(version, known, monkeypatch):
    """A flag that XLA does not know ends the process."""
    monkeypatch.setattr(xla_flags.importlib.metadata, "version", lambda name: version)
    monkeypatch.setattr(xla_flags, "is_known", lambda flag: known)
    environment: dict[str, str] = {}
    xla_flags.protect(environment)
    assert environment == {}


ASK = """
from probgen.backends.jax import probe
assert probe.reductions() == "XLA", probe.reductions()
"""
CHILD = "def ask(_):\n" + textwrap.indent(ASK, "    ")


@needs_jax
@pytest.mark.parametrize(
    "code",
    [
        "import jax, probgen; jax.devices()",
        "import probgen.models",
    ],
)
def test_jax_started_after_probgen_sums_by_itself(code):
    end(start(code + ASK, flags="--xla_cpu_multi_thread_eigen=false"))


@needs_jax
def test_children_sum_rightly_too(tmp_path):
    (tmp_path / "child.py").write_text(CHILD)
    code = f"""
    import sys
    sys.path.insert(0, {str(tmp_path)!r})
    import os, child, multiprocessing
    if __name__ == "__main__":
        import probgen
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            pool.map(child.ask, [0])
        import joblib
        joblib.Parallel(n_jobs=2, backend="loky")(joblib.delayed(child.ask)(i) for i in [0, 1])
    """
    (tmp_path / "parent.py").write_text(textwrap.dedent(code))
    run = f"import runpy; runpy.run_path({str(tmp_path / 'parent.py')!r}, run_name='__main__')"
    end(start(run))


# What every verb gives says so; each result is that of the backend's `info`.
VERBS = """
import numpy as np
from probgen import dist, nets
from probgen.inference import ELBO, SVI, Langevin

@pg.model
def level():
    mu = pg.net("mu", nets.Parameter())()
    with pg.data_plate():
        pg.sample("x", dist.Normal(mu, 1.0))

@pg.model
def mean_of():
    mu = pg.sample("mu", dist.Normal(0.0, 1.0))
    with pg.data_plate():
        pg.sample("x", dist.Normal(mu, 1.0))

x = np.zeros(4, "f4")
run = dict(seed=0, progress_bar=False)
fitted = pg.fit(level, x, SVI(ELBO()), num_steps=2, batch_size=4, backend="jax", **run)
table = pg.evaluate(fitted, x, [ELBO()], **run)
draws = pg.infer(mean_of, x, Langevin(0.01, 5, num_warmup=0, num_chains=1), backend="jax", **run)
sums += [fitted.info["sums"], table.info["sums"], draws.attrs["sums"]]
"""


@needs_jax
@touched
@pytest.mark.parametrize("flags", [None, f"{FLAG}=reduce"], ids=["late", "asked for"])
def test_where_it_is_too_late_that_is_said_once_and_stands_in_every_result(flags):
    """The day that "late" fails jaxlib is mended, or names its fusions otherwise, and `xla_flags`
    is to be renewed."""
    is_late = flags is None
    code = f"""
    {"import jax; jax.devices()" if is_late else ""}
    import warnings
    import probgen as pg
    from probgen.backends import doctor
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        sums = [pg.backends.load("jax", "cpu").info()["sums"] for _ in range(2)]
        exec({VERBS if is_late else ""!r})
        found = [f for f in doctor._backend("jax") if f.name == "sums"]
    said = [w for w in said if issubclass(w.category, pg.errors.UnsafeSums)]
    print(len(said), "XLA_FLAGS='{CURE} {IN_ORDER}'" in str(said[0].message))
    print(*sums, sep="\\n")
    print(found[0].state, found[0].text)
    """
    out = end(start(code, flags=flags, in_haste=True)).splitlines()
    assert out[0] == "1 True"
    assert out[1:-1] == ["YNNPACK: wrong now and then, see UnsafeSums"] * (5 if is_late else 2)
    assert out[-1].startswith("note") and "YNNPACK" in out[-1]
