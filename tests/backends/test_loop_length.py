"""What a sampling loop costs to compile does not depend on how many steps it has."""

import dataclasses

import numpy as np
import pytest
from compilations import Compilations
from emd_cases import small_teacher
from fit_cases import quick

import probgen as pg
from probgen import backends, nets
from probgen.inference import DDIM, Ancestral, ProbabilityFlowODE
from probgen.models import ImplicitDiffusion, NoiseSchedule


def equations(fn, *args):
    """Of the program that JAX would compile, those of inner programs among them."""
    import jax

    return str(jax.make_jaxpr(fn)(*args)).count(" = ")


def size(b, fitted, method=None):
    """Of what is compiled for five draws: equations on JAX, graphs on torch."""
    backends.forget()
    bound, params = fitted.bind(b, num_data=5)
    if b.name == "torch":
        with Compilations("torch") as seen:
            pg.generate(fitted, 5, method=method, seed=0, backend=b)
        return len(seen.names)

    def drawn(params, key):
        if method is None:
            return bound.model.generate(bound, params, key, 5, {})
        return method.draws_of(bound)(params, {}, key, 5)

    return equations(drawn, params, b.key(0))


@pytest.mark.parametrize("sampler", [DDIM, Ancestral, ProbabilityFlowODE])
def test_fifty_steps_of_a_sampler_are_compiled_as_five(sampler, backend_name):
    b, fitted = quick(backend_name), small_teacher(steps=50)
    few, many = (size(b, fitted, sampler(num)) for num in (5, 50))
    assert 0 < few == many


@pytest.mark.parametrize("family", ["diffusion", "denoising GAN"])
def test_a_chain_of_a_thousand_steps_is_compiled_as_one_of_ten(family, backend_name):
    def chain(total):
        if family == "diffusion":
            teacher = small_teacher()
            model = dataclasses.replace(teacher.model, schedule=NoiseSchedule(total))
            return pg.Fitted(model, teacher.params, shapes={"x": (2,)})
        net = nets.LatentDenoiser(2, (4,), 4)
        model = ImplicitDiffusion(net, (2,), 3, NoiseSchedule(total, "vp_sde"))
        params = net.init(np.random.default_rng(0), (2,), (3,), ())
        return pg.Fitted(model, {"generator": params}, shapes={"x": (2,)})

    b = quick(backend_name)
    assert size(b, chain(10)) == size(b, chain(1000))
