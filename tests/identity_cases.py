"""A program as a file of a user's that is edited between two runs, and a small VAE."""

import sys
import textwrap
import types

import numpy as np

from probgen import dist, nets
from probgen.engine.fitted import Fitted
from probgen.models import VAE, likelihoods

X = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)

USERS = """
    import numpy as np
    import probgen as pg
    from probgen import dist

    WIDTH = 1.0
    LOC = np.zeros(3, np.float32)

    def scale_of(z):
        return WIDTH

    class Shift:
        by = 0.5

        def __init__(self, more=0.0):
            self.more = more

        def __call__(self, z):
            return z + self.by + self.more

    def make(offset, shift=Shift()):
        @pg.model
        def program(spread=1.0):
            with pg.data_plate():
                z = pg.sample("z", dist.Normal(0, 1).expand([3]).to_event(1))
                loc = shift(z) + offset + float(LOC.sum())
                pg.sample("x", dist.Normal(loc, scale_of(z)).to_event(1))

        @program.with_guide
        def program(x):
            with pg.data_plate():
                pg.sample("z", dist.Normal(0.5 * x, 0.75).to_event(1))

        return program

    model = make(0.25)
"""


def module(*edits, name="users_program"):
    """The user's file, after edits (old, new), imported anew."""
    text = textwrap.dedent(USERS)
    for old, new in edits:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    made = types.ModuleType(name)
    sys.modules[name] = made
    exec(compile(text, f"/home/user/{name}.py", "exec"), made.__dict__)
    return made


EDITS = {
    "nothing": (),
    "a comment": ("model = make(0.25)", "# as it was\nmodel = make(0.25)"),
    "the body": ("shift(z) + offset", "shift(z) - offset"),
    "a constant of the body": ("Normal(0, 1)", "Normal(0, 2)"),
    "the closure's constant": ("make(0.25)", "make(0.5)"),
    "a default argument": ("spread=1.0", "spread=2.0"),
    "the guide": ("0.75", "0.7"),
    "a global number": ("WIDTH = 1.0", "WIDTH = 1.5"),
    "a global array": ("np.zeros(3", "np.ones(3"),
    "a function that it calls": ("return WIDTH", "return 2 * WIDTH"),
    "an object's state": ("shift=Shift()", "shift=Shift(1.0)"),
    "its class's constant": ("by = 0.5", "by = 0.25"),
    "its class's method": ("z + self.by", "z - self.by"),
}
SAME = ("nothing", "a comment")


def edited(what):
    return module(*([EDITS[what]] if EDITS[what] else [])).model


def vae(weight=1.0, **changes):
    fields = {
        "latent": dist.Normal(0, 1).expand([1]).to_event(1),
        "decoder": nets.MLP(hidden=(), out=(3,)),
        "likelihood": likelihoods.Normal(scale=0.5),
        "encoder": nets.MLP(hidden=(), out=1, heads=("loc", "log_scale")),
    }
    model = VAE(**{**fields, **changes})
    rng = np.random.default_rng(0)
    params = {
        "decoder": fields["decoder"].init(rng, (1,)),
        "encoder": model.encoder.init(rng, (3,)),
    }
    params["decoder"]["out"]["bias"] += np.float32(weight)
    return Fitted(model, params, shapes={"x": (3,)})
