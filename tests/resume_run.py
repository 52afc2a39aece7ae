"""A fit to be killed: `python resume_run.py BACKEND COMPILE FOLDER OUT`, run by test_resume.py.

Slow on purpose (a callback sleeps), so that there is a random moment to kill it at.
"""

import sys
import time

from fit_cases import binary_data, small_vae

import probgen as pg
from probgen import backends
from probgen.inference import PI, SVI, ControlledELBO

NUM_STEPS = 400


class Slow(pg.Callback):
    def __init__(self, seconds):
        self.seconds = seconds

    def on_chunk(self, progress, metrics):
        time.sleep(self.seconds)


def run(backend, compile, checkpoint=None, pause=0.0):
    """Everything that has a state: Adam, a controller, a moving average, held-out data."""
    options = {"compile": compile} if backend == "torch" else {}
    return pg.fit(
        small_vae(), binary_data(200),
        SVI(ControlledELBO(set_point=1.0, controller=PI()), pg.Adam(1e-2, clip_norm=5.0)),
        num_steps=NUM_STEPS, batch_size=32, seed=7, ema_decay=0.9, callbacks=[Slow(pause)],
        validation=binary_data(40, 1), eval_every=20, checkpoint=checkpoint, checkpoint_every=10,
        backend=backends.load(backend, "cpu", **options),
    )  # fmt: skip


if __name__ == "__main__":
    name, how, folder, out = sys.argv[1:]
    run(name, how, folder, pause=0.04).save_pretrained(out)
