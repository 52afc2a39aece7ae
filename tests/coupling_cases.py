"""A small affine coupling flow as `dist.Transformed`, its nets declared where they are called.

x = f_L(... f_1(eps)), each layer moving one half of eps by nets of the other (Dinh et al. 2017,
arXiv:1605.08803). No family of models: what a user writes in twenty lines.
"""

import numpy as np

import probgen as pg
from probgen import dist, nets, ops

STANDARD = dist.Normal(0, 1).expand([2]).to_event(1)


def _moves(i, given):
    """(log scale, shift) of layer i for the half that it moves."""
    net = nets.MLP((8,), 1, heads=("log_scale", "shift"), activation="tanh")
    h = pg.net(f"coupling_{i}", net)(given)
    return ops.tanh(h["log_scale"]), h["shift"]


def _halves(x, i):
    return (x[..., :1], x[..., 1:]) if i % 2 else (x[..., 1:], x[..., :1])


def _joined(kept, moved, i):
    return ops.concatenate([kept, moved] if i % 2 else [moved, kept], axis=-1)


def coupling_flow(num_layers=3, base=STANDARD):
    """[2]-vectors."""

    def forward(x):
        for i in range(num_layers):
            kept, moved = _halves(x, i)
            log_scale, shift = _moves(i, kept)
            x = _joined(kept, moved * ops.exp(log_scale) + shift, i)
        return x

    def inverse_and_log_det(y):
        total = 0.0
        for i in reversed(range(num_layers)):
            kept, moved = _halves(y, i)
            log_scale, shift = _moves(i, kept)
            y = _joined(kept, (moved - shift) * ops.exp(-log_scale), i)
            total = total - log_scale[..., 0]
        return y, total

    return dist.Transformed(base, forward, inverse_and_log_det)


@pg.model
def flow():
    with pg.data_plate():
        pg.sample("x", coupling_flow())


def off_zero(b, params, seed=1):
    """Parameters at which the flow does something."""
    rng = np.random.default_rng(seed)
    from probgen.trees import tree_map

    return tree_map(
        lambda p: b.asarray(rng.normal(0, 0.5, tuple(p.shape)).astype(np.float32)), params
    )
