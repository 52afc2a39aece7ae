"""The demo: a VAE of handwritten digits, from data to a report, on either backend.

The 5,000 MNIST digits that come with the installation are made black and white, 500 of them are
held out by the seed, and a VAE with 16 latent units learns from the rest. What is then measured and
shown is `measure`, `strangers` (what it says to data that are no digits) and `page`; `run`
does it all and is what `probgen demo` calls.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import probgen as pg
from probgen import data, dist, nets
from probgen.engine.fitted import Fitted
from probgen.errors import SaveError
from probgen.evaluation.demo.page import demo_report
from probgen.evaluation.demo.settings import Results, Settings
from probgen.evaluation.demo.strangers import confront, strangers
from probgen.inference import ELBO, IWAE, SVI
from probgen.inference.ood import fit_background
from probgen.language.seeds import check_seed
from probgen.models import VAE
from probgen.records import atomic

Array = Any


HELD_OUT = "held_out_digits.npz"


def digits(settings: Settings, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(train, held out): black-and-white digits [n, 28, 28, 1], each class in its share."""
    images = data.binarize(data.mnist5k())
    sizes = [settings.num_train, settings.num_held_out]
    train, held_out = data.split(images, sizes, seed=seed, stratify=True)
    return train.images, held_out.images


def declare(settings: Settings) -> VAE:
    """z ~ N(0, I), x | z ~ Bernoulli(sigmoid(f(z))), and a Gaussian encoder."""
    d, heads, image = settings.latent_dim, ("loc", "log_scale"), (28, 28, 1)
    encoder: Any = nets.MLP(hidden=(400,), out=d, heads=heads)
    decoder: Any = nets.MLP(hidden=(400,), out=image)
    if settings.net == "conv":
        encoder = nets.ConvEncoder(channels=(16, 32), hidden=(128,), out=d, heads=heads)
        decoder = nets.ConvDecoder(channels=(32, 16), hidden=(128,), out=image)
    return VAE(
        latent=dist.Normal(0, 1).expand([d]).to_event(1),
        decoder=decoder,
        likelihood=dist.Bernoulli,
        encoder=encoder,
    )


def learn(
    settings: Settings, train: np.ndarray, held_out: np.ndarray, *, seed: int, backend: Any
) -> Fitted:
    """Fits the VAE by the ELBO with Adam, its step size falling to zero along half a cosine."""
    steps, batch_size = _steps(settings, settings.num_epochs, train)
    return pg.fit(
        declare(settings),
        train,
        SVI(ELBO(), pg.Adam(pg.CosineDecay(settings.learning_rate, steps))),
        num_steps=steps,
        batch_size=batch_size,
        validation=held_out,
        eval_every=-(-steps // 20),
        seed=seed,
        backend=backend,
    )


def learn_background(settings: Settings, train: np.ndarray, *, seed: int, backend: Any) -> Fitted:
    """The same VAE, of digits of which a fifth of the pixels is random: for the ratio."""
    steps, batch_size = _steps(settings, settings.background_epochs, train)
    return fit_background(
        declare(settings),
        train,
        SVI(ELBO(), pg.Adam(pg.CosineDecay(settings.learning_rate, steps))),
        rate=0.2,
        num_levels=2,
        num_steps=steps,
        batch_size=batch_size,
        seed=seed,
        backend=backend,
    )


def _steps(settings: Settings, num_epochs: int, train: np.ndarray) -> tuple[int, int]:
    batch_size = min(settings.batch_size, len(train))
    return num_epochs * (len(train) // batch_size), batch_size


def measure(
    fitted: Fitted, train: np.ndarray, held_out: np.ndarray, settings: Settings, *, seed: int
) -> dict[str, Any]:
    """The likelihoods: fields of `Results`, from elbo to num_bare."""
    bound, estimate = ELBO(num_particles=settings.elbo_particles), IWAE(settings.num_particles)
    table = pg.evaluate(fitted, held_out, [bound, estimate], seed=seed)
    seen = pg.evaluate(fitted, train[: len(held_out)], [bound], seed=seed)
    return {
        "elbo": table.mean(bound.name),
        "train_elbo": seen.mean(bound.name),
        "log_p": table.mean(estimate.name),
        "log_p_each": table[estimate.name]["estimate"].values,
        "effective": table[estimate.name]["effective_particles"].values,
        "num_bare": table.bound_only(estimate.name),
    }


def pictures(
    fitted: Fitted, held_out: np.ndarray, start: int, *, seed: int, backend: Any
) -> dict[str, Any]:
    """Samples, reconstructions and traversals: `Results`' fields of those names.

    Args:
        start: the held-out digit whose code the traversals start from.
    """
    b = backend
    bound, params = fitted.bind(b, {"x": held_out})
    model: Any = fitted.model

    def mean_of(params: Any, z: Any) -> Any:
        return model.mean(bound, params, z)

    def code_of(params: Any, x: Any) -> Any:
        return b.mean(bound.trace_guide(params, {"x": x}, key=b.key(seed))["z"].fn)

    # On JAX one program for each shape, in place of one for each operation.
    compiled_mean, compiled_code = (b.compile(fn, num_calls=3) for fn in (mean_of, code_of))

    def mean_images(z: np.ndarray) -> np.ndarray:
        return b.to_numpy(compiled_mean(params, b.asarray(z.astype(np.float32))))

    def codes(x: np.ndarray) -> np.ndarray:
        return b.to_numpy(compiled_code(params, b.asarray(x)))

    z = pg.generate(fitted, 60, seed=seed, backend=b)["z"]
    originals = held_out[:20]
    steps = np.linspace(-2.5, 2.5, 11)
    code = codes(held_out[start : start + 1])[0]  # [d]
    d = code.size
    paths = np.tile(code, (d, len(steps), 1))  # [d, steps, d]
    paths[np.arange(d), :, np.arange(d)] = steps
    return {
        "samples": mean_images(z),
        "originals": originals,
        "reconstructions": mean_images(codes(originals)),
        "traversals": mean_images(paths.reshape(-1, d)).reshape(d, len(steps), *held_out.shape[1:]),
        "steps": steps,
    }


def run(
    *,
    backend: str = "auto",
    out: str | os.PathLike = "runs/demo",
    seed: int = 0,
    settings: Settings | None = None,
    command: str = "probgen demo",
    say: Callable[[str], None] = logging.getLogger("probgen").info,
) -> Path:
    """Learns, measures, draws and writes the report under `out`, and what it was made from.

    These are `report.html` and `report.json`, the folders `model` and `background`, and the
    held-out digits as `held_out_digits.npz`: what `probgen evaluate` can be tried on.

    Args:
        backend: "auto", "torch" or "jax".
        out: a folder; made if it is not there.
        seed: of the split, the fit, the estimates and the samples.
        settings: sizes; `Settings.quick()` for a look.
        command: what the report says to type for the same again.
        say: gets a line of text after each part.

    Returns:
        The path of the report.

    Raises:
        ProbgenError: data or framework are missing, or the folder cannot be written.
    """
    seed = check_seed(seed, "demo")
    chosen, folder = settings or Settings(), _writable(out)
    watch = _Watch()
    b = pg.backends.resolve(backend)
    versions = ", ".join(f"{k} {v}" for k, v in b.versions().items())
    say(f"backend  {b.name} on {b.device} ({versions})")
    train, held_out = digits(chosen, seed)
    say(f"data     {len(train)} digits to learn from, {len(held_out)} held out (seed {seed})")
    fitted = learn(chosen, train, held_out, seed=seed, backend=b)
    watch.lap("learning")
    steps, count = fitted.history.num_steps, fitted.num_parameters()
    say(f"learn    {steps} steps, {count:,} parameters: {watch.parts['learning']:.0f} s")
    numbers = measure(fitted, train, held_out, chosen, seed=seed)
    watch.lap("likelihoods")
    say(
        f"measure  held-out ELBO {numbers['elbo'][0]:.2f} ± {numbers['elbo'][1]:.2f} nats per digit"
    )
    say(
        f"         log p(x) above {numbers['log_p'][0]:.2f} ± {numbers['log_p'][1]:.2f} "
        f"(K = {chosen.num_particles}): {watch.parts['likelihoods']:.0f} s"
    )
    typical = int(np.argsort(numbers["log_p_each"])[len(held_out) // 2])
    drawn = pictures(fitted, held_out, typical, seed=seed, backend=b)
    watch.lap("pictures")
    background = learn_background(chosen, train, seed=seed, backend=b)
    watch.lap("background")
    others = strangers(held_out, chosen.num_strangers, seed=seed)
    gathered = confront(
        fitted, background, others, particles=chosen.score_particles,
        num_steps=chosen.num_search_steps, seed=seed,
    )  # fmt: skip
    watch.lap("strangers")
    count = len(next(iter(others.values())))
    say(
        f"strange  {len(others) - 1} sets of {count} that are no digits, {len(gathered.measures)} "
        f"measures: {watch.parts['background'] + watch.parts['strangers']:.0f} s"
    )
    results = Results(
        settings=chosen, fitted=fitted, **numbers, **drawn, held_out=held_out, strangers=gathered,
        kl_units=fitted.report.kl_units["z"], active=fitted.report.active_units["z"],
        seconds=watch.parts, cpu_seconds=watch.cpu(),
    )  # fmt: skip
    fitted.save_pretrained(folder / "model")
    background.save_pretrained(folder / "background")
    atomic.put(atomic.at(folder / HELD_OUT), lambda fresh: _write_npz(fresh, held_out))
    path = demo_report(results, command=command).save(folder / "report.html")
    say(f"wrote    {path}, {path.with_suffix('.json')} and {folder / 'model'}")
    return path


def _write_npz(fresh: Path, x: np.ndarray) -> None:
    with fresh.open("wb") as file:  # a name would get the ending .npz
        np.savez_compressed(file, x=x)
    atomic.sync(fresh)


def _writable(out: str | os.PathLike) -> Path:
    """The folder, made: found out before a minute of work, not after it."""
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise SaveError(
            f"demo: {folder} cannot be written to ({error.strerror or error}), expected a folder "
            "for the report; give another one with --out."
        ) from error


class _Watch:
    """Wall time of each part, and the processor time of the whole with its child processes."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}
        self._last, self._cpu = time.perf_counter(), sum(os.times()[:4])

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.parts[name] = now - self._last
        self._last = now

    def cpu(self) -> float:
        return sum(os.times()[:4]) - self._cpu
