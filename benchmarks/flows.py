"""Declared flows against zuko on torch and flowjax on JAX: log density, and training.

    affine    RealNVP: 6 affine couplings of data of 8 numbers, perceptrons 64-64
    spline    the same with rational-quadratic splines of 8 bins

zuko parts a datum by parity and flowjax in halves, and so does ours against each. All sides start
from the same weights, away from the identity, and have the same parametrisation, so that their
densities are equal before anything is timed. One differs: zuko's splines clip their raw numbers
softly and have exponentials for derivatives; those two start alike and end at nearly one loss.

Peers are trained as their users do: batches indexed on the host, one step a call (eager with fused
Adam, or flowjax's own jitted step); ours is `pg.fit`. A peer that is not installed leaves its rows
out: `pip install zuko flowjax`.
"""

import functools
import importlib.util
import math
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from fitting import BATCH, STEPS, Fit, batches, held_fit
from harness import Agreement, Contest, Setting, Side, Target

from probgen import backends, nets
from probgen.engine.bind import bind
from probgen.models import Affine, Coupling, Flow, Spline
from probgen.trees import tree_items, tree_map

D, LAYERS, HIDDEN, BINS, BOUND, ROWS, NUM_DATA = 8, 6, 64, 8, 5.0, 512, 5000
LIMIT = -math.log(1e-3)  # zuko's limit of a log scale
PEERS = {"torch": "zuko", "jax": "flowjax"}
MASK = {"torch": "parity", "jax": "halves"}
AT_LEAST = 1.0


def points() -> np.ndarray:
    """Four bananas, [n, 8], of a scale of about one."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(NUM_DATA, D))
    z[:, 1::2] = 0.5 * (z[:, ::2] ** 2 - 1.0) + 0.5 * z[:, 1::2]
    return z.astype(np.float32)


def flow(kind: str, backend: str) -> Flow:
    """The declaration."""
    how = Affine(LIMIT) if kind == "affine" else Spline(BINS, BOUND, 1e-3 / (2 * BOUND))
    net = nets.MLP((HIDDEN, HIDDEN))
    return Flow(
        D, Coupling(net, how, (MASK[backend],)), num_layers=LAYERS, standardize=False
    )  # fmt: skip


def start(kind: str, backend: str) -> dict[str, Any]:
    """Parameters away from the identity, numpy; those of splines that zuko has otherwise are."""
    b = backends.load(backend, "cpu")
    params = tree_map(b.to_numpy, bind(flow(kind, backend), b)[1])
    size = 0.0 if (kind, backend) == ("spline", "torch") else 0.3
    for path, leaf in tree_items(params):
        if path[1:] == ("out", "weight"):
            rng = np.random.default_rng(zlib.crc32(path[0].encode()))
            params[path[0]]["out"]["weight"] = (
                size * rng.normal(size=leaf.shape) / HIDDEN**0.5
            ).astype(np.float32)
    return params


def ours(kind: str, backend: str, setting: Setting) -> tuple[Callable[[], Fit], Callable]:
    """(makes a held fit, log density) of the declaration."""
    how = {"compile": "graph" if setting.tiny else "inductor"} if backend == "torch" else {}
    b, model, x = backends.load(backend, setting.device, **how), flow(kind, backend), points()
    bound, _ = bind(model, b, data={"x": x[:1]})
    first = tree_map(b.asarray, start(kind, backend))
    compiled = b.compile(lambda params, x: bound.trace(params, {"x": x})["x"].log_prob)

    def fit() -> Fit:
        held = held_fit(model, x, b, init=start(kind, backend))

        def loss(_: int = 1) -> np.ndarray:
            params = held.params()
            params = first if params is None else tree_map(b.asarray, params)
            return -b.to_numpy(compiled(params, b.asarray(x[:ROWS])))

        return Fit(held.advance, loss)

    return fit, functools.partial(compiled, first)


# ---- zuko ---------------------------------------------------------------------------------------


def by_zuko(kind: str, setting: Setting) -> tuple[Callable[[], Fit], Callable]:
    """zuko's RealNVP, eager, as it is used."""
    import torch
    import zuko

    more: dict[str, Any] = {}
    if kind == "spline":
        shapes = [(BINS,), (BINS,), (BINS - 1,)]
        more = {"univariate": zuko.transforms.MonotonicRQSTransform, "shapes": shapes}
    made = zuko.flows.RealNVP(D, transforms=LAYERS, hidden_features=(HIDDEN, HIDDEN), **more)
    count = 2 if kind == "affine" else 3 * BINS - 1
    for i, layer in enumerate(made.transform.transforms):
        p = start(kind, "torch")[f"layer{i}"]
        linear = [each for each in layer.hyper if hasattr(each, "weight")]
        for name, module in zip(("layer0", "layer1", "out"), linear, strict=True):
            weight, bias = p[name]["weight"], p[name]["bias"]
            if name == "out":  # numbers of one value side by side, the shift of an affine map first
                back = slice(None, None, -1) if kind == "affine" else slice(None)
                weight, bias = (
                    v.reshape(*v.shape[:-1], count, -1)[..., back, :].swapaxes(-1, -2)
                    .reshape(v.shape) for v in (weight, bias)
                )  # fmt: skip
            with torch.no_grad():
                module.weight.copy_(torch.as_tensor(np.ascontiguousarray(weight.T)))
                module.bias.copy_(torch.as_tensor(np.ascontiguousarray(bias)))
    made = made.to(setting.device)
    x = torch.as_tensor(points(), device=setting.device)

    def density(x: Any) -> Any:
        with torch.no_grad():
            return made().log_prob(x)

    def fit() -> Fit:
        optimizer = torch.optim.Adam(made.parameters(), 1e-3, fused=True)
        following = batches(points())

        def block() -> None:
            for rows in torch.as_tensor(following(), device=setting.device):
                optimizer.zero_grad(set_to_none=True)
                (-made().log_prob(x[rows]).mean()).backward()
                optimizer.step()

        return Fit(block, lambda _=1: -density(x[:ROWS]).cpu().numpy())

    return fit, density


# ---- flowjax ------------------------------------------------------------------------------------


def by_flowjax(kind: str, setting: Setting) -> tuple[Callable[[], Fit], Callable]:
    """flowjax's couplings, scanned over as its `coupling_flow` does, with a flip for its random
    permutations, which ours has no like of."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import optax
    import paramax
    from flowjax import bijections as bij
    from flowjax.distributions import StandardNormal, Transformed
    from flowjax.train.losses import MaximumLikelihoodLoss
    from flowjax.train.train_utils import step

    if kind == "affine":
        scale = paramax.Parameterize(lambda r: jnp.exp(r / (1 + jnp.abs(r) / LIMIT)), jnp.zeros(()))
        moved = eqx.tree_at(lambda a: a.scale, bij.Affine(), scale)
    else:
        moved = bij.RationalQuadraticSpline(knots=BINS - 1, interval=BOUND)

    def layer(key: Any) -> Any:
        coupling = bij.Coupling(
            key, transformer=moved, untransformed_dim=D // 2, dim=D, nn_width=HIDDEN, nn_depth=2
        )
        return bij.Chain([coupling, bij.Flip((D,))])

    layers = eqx.filter_vmap(layer)(jax.random.split(jax.random.key(0), LAYERS))
    weights = [_for_flowjax(kind, i, p) for i, p in enumerate(_in_order(start(kind, "jax")))]
    for j in range(3):
        for k, name in enumerate(("weight", "bias")):
            stacked = jnp.stack([w[j][k] for w in weights])
            layers = eqx.tree_at(
                lambda t, j=j, n=name: getattr(t.bijections[0].conditioner.layers[j], n),
                layers, stacked,
            )  # fmt: skip
    made = Transformed(StandardNormal((D,)), bij.Invert(bij.Scan(layers)))
    density = eqx.filter_jit(lambda made, x: paramax.unwrap(made).log_prob(x))
    x = points()

    def fit() -> Fit:
        is_leaf = lambda leaf: isinstance(leaf, paramax.NonTrainable)  # noqa: E731
        params, static = eqx.partition(made, eqx.is_inexact_array, is_leaf=is_leaf)
        optimizer, loss_fn = optax.adam(1e-3), MaximumLikelihoodLoss()
        now, following = [params, optimizer.init(params)], batches(x)

        def block() -> None:
            for rows in following():
                now[0], now[1], loss = step(
                    now[0], static, x[rows], optimizer=optimizer, opt_state=now[1], loss_fn=loss_fn
                )
            jax.block_until_ready((now, loss))

        def loss(_: int = 1) -> np.ndarray:
            return -np.asarray(density(eqx.combine(now[0], static), x[:ROWS]))

        return Fit(block, loss)

    return fit, functools.partial(density, made)


def _in_order(params: dict[str, Any]) -> list[Any]:
    return [params[name] for name in sorted(params)]


def _for_flowjax(kind: str, i: int, p: dict[str, Any]) -> list[tuple[np.ndarray, np.ndarray]]:
    """A net's weights [out, in] and biases: flipped halves in each second layer, the numbers of one
    value side by side, with the derivatives at both ends of a spline, which stay at one."""
    way, count = slice(None, None, -1 if i % 2 else 1), 2 if kind == "affine" else 3 * BINS - 1

    def numbers(v: np.ndarray) -> np.ndarray:
        v = v.reshape(*v.shape[:-1], count, D // 2)[..., way]
        if kind == "affine":
            v = v[..., ::-1, :]  # its shift comes first
        else:
            end = np.zeros_like(v[..., :1, :])
            k = 2 * BINS
            v = np.concatenate([v[..., :k, :], end, v[..., k:, :], end], -2)
        return v.swapaxes(-1, -2).reshape(*v.shape[:-2], -1)

    first, second, out = p["layer0"], p["layer1"], p["out"]
    return [
        (first["weight"][way].T, first["bias"]),
        (second["weight"].T, second["bias"]),
        (numbers(out["weight"]).T, numbers(out["bias"])),
    ]


# ---- contests -----------------------------------------------------------------------------------


def same_density(x: Any, one: Callable, other: Callable) -> Agreement:
    a, b = (np.asarray(each(x)) for each in (one, other))
    return Agreement("log densities, nats", float(np.abs(a - b).max()), 1e-3)


def same_training(one: Fit, other: Fit) -> Agreement:
    a, b = one.loss(1).mean(), other.loss(1).mean()
    return Agreement("loss after training, relative", float(abs(a - b) / abs(b)), 0.03)


def contest(kind: str, backend: str, what: str, name: str, setting: Setting) -> Contest:
    peer = PEERS[backend]
    (fit, density), (its_fit, its_density) = (
        ours(kind, backend, setting),
        (by_zuko if backend == "torch" else by_flowjax)(kind, setting),
    )
    b = backends.load(backend, setting.device)
    x = b.asarray(points()[:ROWS])
    check = functools.partial(same_density, x, density, its_density)
    if not check().holds:
        raise SystemExit(f"{name}: ours and {peer} do not start alike: {check()}")
    if what == "log density":
        times = 3 if setting.tiny else 200

        def repeat(fn: Callable) -> Side:
            def block() -> None:
                for _ in range(times):
                    out = fn(x)
                b.to_numpy(out)

            return Side(block, times * ROWS)

        sides = {"probgen": repeat(density), peer: repeat(its_density)}
        return Contest(name, "points", sides, [Target("probgen", peer, AT_LEAST, check)])
    fits = {"probgen": fit(), peer: its_fit()}
    check = functools.partial(same_training, *fits.values())
    sides = {side: Side(each.block, STEPS * BATCH) for side, each in fits.items()}
    return Contest(name, "points", sides, [Target("probgen", peer, AT_LEAST, check)])


def contests(setting: Setting, only: str = "") -> Iterator[Contest]:
    for backend, peer in PEERS.items():
        for what in ("log density", "training"):
            for kind in ("affine", "spline"):
                name = f"flow {what}, {kind} couplings, {backend}"
                if only not in name or not backends.available()[backend]:
                    continue
                if importlib.util.find_spec(peer) is None:
                    print(f"{name}: left out; pip install {peer}", file=sys.stderr)
                    continue
                yield contest(kind, backend, what, name, setting)
