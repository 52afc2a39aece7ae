"""A fit to be killed, by test_resume.py.

Slow on purpose where it is to be killed (a callback sleeps), so that there is a random moment to do
so at.
"""

import time

from fit_cases import binary_data, small_vae
from learner_cases import EM, factor_data, factor_model

import probgen as pg
from probgen import backends
from probgen.inference import PI, SVI, ControlledELBO

NUM_STEPS = 200


class Slow(pg.Callback):
    def __init__(self, seconds):
        self.seconds = seconds

    def on_chunk(self, progress, metrics):
        time.sleep(self.seconds)


def run(backend, compile, case="vae", checkpoint=None, pause=0.0):
    """Everything that has a state: Adam, a controller, a moving average, held-out data; or a chain
    for each datum."""
    options = {"compile": compile} if backend == "torch" else {}
    common = dict(
        num_steps=NUM_STEPS, batch_size=32, seed=7, ema_decay=0.9, callbacks=[Slow(pause)],
        checkpoint=checkpoint, checkpoint_every=10,
        backend=backends.load(backend, "cpu", **options),
    )  # fmt: skip
    if case == "em":
        return pg.fit(factor_model(), factor_data(100), EM(num_steps=2), **common)
    loss = ControlledELBO(set_point=1.0, controller=PI())
    return pg.fit(
        small_vae(), binary_data(200), SVI(loss, pg.Adam(1e-2, clip_norm=5.0)),
        validation=binary_data(40, 1), eval_every=20, **common,
    )  # fmt: skip
