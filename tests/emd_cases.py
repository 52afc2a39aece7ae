"""The linear-Gaussian student and teacher of EM distillation, all of whose answers are known.

q_0 = N(1, 0.5^2),   g(z) = 0.8 z + 0.3,   t = 0.4 of alpha = cos(pi t / 2)
ascent in (slope, bias) of E log p_t(x | z):  (0.0587, 0.5994) forward, (-0.3434, 0.8999) reverse
"""

import dataclasses
import math

import numpy as np

import probgen as pg
from probgen import dist, nets
from probgen.engine.bind import bind
from probgen.inference import EMDistillation
from probgen.inference.learn.em_distillation_chain import Generator, chain_of
from probgen.inference.learn.em_distillation_scores import cosine, scores_of
from probgen.models import Diffusion, NoiseSchedule

SLOPE, BIAS, T = 0.8, 0.3, 0.4
FORWARD, REVERSE, STILL = (0.0587, 0.5994), (-0.3434, 0.8999), (-0.280, 0.734)
PARAMS = {"g": {"out": {"weight": np.float32([[SLOPE]]), "bias": np.float32([BIAS])}}}
ALPHA, SIGMA = math.cos(0.5 * math.pi * T), math.sin(0.5 * math.pi * T)


@pg.model
def affine():
    """x = a z + b."""
    with pg.data_plate():
        z = pg.sample("z", dist.Normal(0.0, 1.0).expand([1]).to_event(1))
        pg.deterministic("x", pg.net("g", nets.MLP((), out=1, in_ndim=1))(z))


def teacher_score(x, t):
    alpha, sigma = cosine(t)
    return (alpha - x) / (0.25 * alpha**2 + sigma**2)


def student_score(params, x, t):
    alpha, sigma = cosine(t)
    layer = params["g"]["out"]
    a, c = layer["weight"][0, 0], layer["bias"][0]
    return (alpha * c - x) / ((alpha * a) ** 2 + sigma**2)


def exact(optimizer=pg.SGD(1.0), **options):
    """The algorithm with both scores known, at one level, w = 1."""
    settings = {"weighting": "uniform", "times": (T, T), "student_score": student_score, **options}
    return EMDistillation(teacher_score, optimizer, **settings)


def chain_ends(b, algorithm, num, seed=0, model=affine, params=PARAMS):
    """(ends of `num` chains, what they started from), numpy."""
    bound, params = bind(model, b, params=params, num_draws=num)
    g = Generator(bound)
    scores = scores_of(bound, algorithm, g.shape)
    chain = chain_of(bound, algorithm, g, scores)

    def run(params, key):
        k_noise, k_level, k_chain = b.split(key, 3)
        z, eps = g.draw(k_noise, num)
        level, x = scores.level(k_level, num), g(params, {}, z)
        weights = {"student": params, "score": {}, "teacher": {}}
        fixed = {"level": level, "batch": {}, "x": x, "seen": {}}
        start = {"eps": eps, "z": z}
        return chain(start, k_chain, weights, fixed), start

    return b.tree_map(b.to_numpy, b.compile(run, over="steps")(params, b.key(seed)))


def gradients(ends, gamma=0.16):
    """Ascent in (slope, bias) of each chain, [n, 2], by the kind of cancellation."""
    z0, z = ends.start["z"], ends.z["z"]
    injected, scale = ends.eps - ends.push, ALPHA / SIGMA

    def pull(eps, z):
        return scale * np.concatenate([eps * z, eps], axis=1).astype(np.float64)

    none = pull(ends.eps, z)
    return {
        "none": none, "full": pull(ends.push, z), "anchored": none - pull(injected, z0),
        "last": pull(ends.push + (1 - gamma) * ends.before, z),
    }  # fmt: skip


def within_errors(found, wanted, errors=4.0, bias=0.0):
    """Means [n, 2] against known ones, in standard errors."""
    error = found.std(0, ddof=1) / math.sqrt(len(found))
    off = np.abs(found.mean(0) - np.asarray(wanted))
    assert (off < errors * error + bias).all(), (found.mean(0), wanted, error)


def small_teacher(seed=0, hidden=(8,), steps=40, prediction="v_prediction"):
    """An untrained diffusion of two numbers, as a `Fitted`."""
    net = nets.MLPDenoiser(2, hidden, time_dim=4)
    model = Diffusion(net, (2,), NoiseSchedule.rescaled(steps), prediction)
    rng = np.random.default_rng(seed)
    return pg.Fitted(model, {"denoiser": net.init(rng, (2,), ())}, shapes={"x": (2,)})


def others(algorithm, **options):
    return dataclasses.replace(algorithm, **options)
