"""Training a declared VAE on JAX, against NumPyro's usual loop and a hand-written scan.

Peers are written with plain functions on the parameters that our declaration starts from; their
convolutions are XLA's own. Rows come from the host for a loop in Python, as there, and are indexed
on the device inside a scan, as ours are.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from fitting import BATCH, LATENT, Fit, batches, declared, images, initial_params, versus
from harness import Contest, Setting

# ---- the networks, in JAX's own words -----------------------------------------------------------


def encode(kind: str, p: Any, x: Any) -> Any:
    """(loc, log_scale), [batch, latent]."""
    if kind == "mlp":
        h = jax.nn.relu(_dense(p["layer0"], x.reshape(len(x), -1)))
        return jnp.split(_dense(p["out"], h), 2, -1)
    h = jax.nn.relu(_conv(p["conv0"], x))
    h = jax.nn.relu(_conv(p["conv1"], h)).reshape(len(x), -1)
    return jnp.split(_dense(p["head"]["out"], h), 2, -1)


def decode(kind: str, p: Any, z: Any) -> Any:
    """Log odds of the pixels, [batch, 28, 28, 1]."""
    if kind == "mlp":
        h = jax.nn.relu(_dense(p["layer0"], z))
        return _dense(p["out"], h).reshape(len(z), 28, 28, 1)
    h = jax.nn.relu(_dense(p["stem"]["out"], z)).reshape(len(z), 7, 7, 64)
    return _transposed(p["conv1"], jax.nn.relu(_transposed(p["conv0"], h)))


def _dense(p: Any, x: Any) -> Any:
    return x @ p["weight"] + p["bias"]


def _conv(p: Any, x: Any) -> Any:
    y = jax.lax.conv_general_dilated(
        x, p["weight"], (2, 2), [(1, 1), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return y + p["bias"]


def _transposed(p: Any, x: Any) -> Any:
    return jax.lax.conv_transpose(x, p["weight"], (2, 2), "SAME") + p["bias"]


def networks(kind: str) -> dict[str, Any]:
    """Our initial parameters; `lax.conv_transpose` reads its kernels the other way round."""
    p = initial_params(kind)
    for name in ("conv0", "conv1"):
        if name in p["decoder"]:
            p["decoder"][name]["weight"] = p["decoder"][name]["weight"][::-1, ::-1].copy()
    return jax.tree.map(jnp.asarray, p)


# ---- the peers ----------------------------------------------------------------------------------


def by_numpyro(kind: str, setting: Setting) -> Fit:
    """NumPyro's SVI with the closed-form KL: `svi.update` jitted, called for each batch."""
    import numpyro
    import numpyro.distributions as nd
    from numpyro.infer import SVI, TraceMeanField_ELBO

    x, start = images(), networks(kind)

    def model(x: Any) -> None:
        p = numpyro.param("decoder", start["decoder"])
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", nd.Normal(jnp.zeros((len(x), LATENT)), 1.0).to_event(1))
            numpyro.sample("x", nd.Bernoulli(logits=decode(kind, p, z)).to_event(3), obs=x)

    def guide(x: Any) -> None:
        p = numpyro.param("encoder", start["encoder"])
        with numpyro.plate("data", len(x)):
            loc, log_scale = encode(kind, p, x)
            numpyro.sample("z", nd.Normal(loc, jnp.exp(log_scale)).to_event(1))

    svi = SVI(model, guide, optax.adam(1e-3), TraceMeanField_ELBO())
    following, first = batches(), jnp.asarray(x[batches()()[0]])
    update = jax.jit(svi.update)
    now = [svi.init(jax.random.key(0), first)]

    def block() -> None:
        for rows in following():
            now[0], loss = update(now[0], x[rows])
        jax.block_until_ready((now[0], loss))

    evaluate = jax.jit(svi.evaluate)

    def losses(count: int) -> np.ndarray:
        keys = jax.random.split(jax.random.key(1), count)
        return np.array([float(evaluate(now[0]._replace(rng_key=k), first)) for k in keys]) / BATCH

    return Fit(block, losses)


def by_hand(kind: str, setting: Setting) -> Fit:
    """No distributions: one jitted `lax.scan` over the rows of a block.

    The cross-entropy is NumPyro's formula, which ours is too: of softplus(l) - x l XLA makes a loop
    that is a fifth slower, and that difference would not be our doing.
    """
    from numpyro.distributions.util import binary_cross_entropy_with_logits

    x = jnp.asarray(images())
    optimizer = optax.adam(1e-3)
    params = networks(kind)
    following, first = batches(), x[batches()()[0]]

    def loss(p: Any, key: Any, x: Any) -> Any:
        loc, log_scale = encode(kind, p["encoder"], x)
        z = loc + jax.random.normal(key, loc.shape) * jnp.exp(log_scale)
        logits = decode(kind, p["decoder"], z)
        reconstruction = binary_cross_entropy_with_logits(logits, x).sum()
        kl = -0.5 * (1 + 2 * log_scale - loc * loc - jnp.exp(2 * log_scale)).sum()
        return (reconstruction + kl) / len(x)

    def step(carry: Any, rows: Any) -> Any:
        p, state, key = carry
        key, used = jax.random.split(key)
        value, gradient = jax.value_and_grad(loss)(p, used, x[rows])
        change, state = optimizer.update(gradient, state)
        return (optax.apply_updates(p, change), state, key), value

    run = jax.jit(lambda carry, rows: jax.lax.scan(step, carry, rows), donate_argnums=0)
    now = [(params, optimizer.init(params), jax.random.key(0))]

    def block() -> None:
        now[0], values = run(now[0], jnp.asarray(following()))
        jax.block_until_ready((now[0], values))

    draw = jax.jit(lambda p, key: loss(p, key, first))

    def losses(count: int) -> np.ndarray:
        keys = jax.random.split(jax.random.key(1), count)
        return np.array([float(draw(now[0][0], k)) for k in keys])

    return Fit(block, losses)


MLP = {
    ("probgen", "NumPyro, jitted loop"): 1.05,
    ("probgen", "jit + scan by hand"): 0.95,
}
CONV = {("probgen", "NumPyro, jitted loop"): 1.4}


def contests(setting: Setting, only: str = "") -> Iterator[Contest]:
    for kind, asked in (("mlp", MLP), ("conv", CONV)):
        name = f"{kind} VAE, JAX"
        if only not in name:
            continue
        makers: dict[str, Callable[[], Fit]] = {
            "probgen": lambda kind=kind: declared(kind, "jax", setting),
            "NumPyro, jitted loop": lambda kind=kind: by_numpyro(kind, setting),
            "jit + scan by hand": lambda kind=kind: by_hand(kind, setting),
        }
        yield versus(name, makers, asked, setting)
