"""The pages of systems are true: their declarations run as they stand, at a reduced length."""

import re
from pathlib import Path

import numpy as np
import pytest

from probgen.backends import load

ROOT = Path(__file__).resolve().parents[2]
SHORTER = [  # of what takes minutes
    (r"num_steps=300, num_warmup=600, num_chains=2, thinning=30", "num_steps=2"),
    (r"num_steps=(4000|3000|2400|1000|300|100|20)\b", "num_steps=5"),
    (r"NoiseSchedule\(1000,", "NoiseSchedule(12,"),
    (r"DDIM\(50\)", "DDIM(4)"),
    (r"num_warmup=300(?=\))", "num_warmup=5"),
    (r"AIS\(\d+, num_chains=\d", "AIS(10, num_pilot_steps=10, num_chains=2"),
    (r"Quadrature\(", "Quadrature(41, "),
    (r"((?<=fitted, )|(?<=\w\"\], ))[15]000", "50"),
    (r"(20_000|5000)(?=, seed=[12]\))", "300"),
    (r"\[:100\]", "[:5]"),
    (r"(?<=ImportanceSampling\()200_000", "2000"),
    (r"(?<=tilted, )10_000", "50"),
    (r"for n in \(20_000, 500\)", "for n in (600, 20)"),
    (r"sprites\(40_000", "sprites(60"),
    (r"num_steps=9000", "num_steps=3"),
    (r"NoiseSchedule\(50,", "NoiseSchedule(4,"),
    (r"DDIM\(50,", "DDIM(4,"),
    (r"num_steps=500", "num_steps=40"),
    (r"(?<=mine\[\"mask\"\]\[0\])", ", start=4, stop=1"),
    (r"seed=0(?=\s*\))", "seed=0, backend=BACKEND"),
]


def run_page(name, backend):
    """The page's own names after its first program."""
    text = (ROOT / "docs" / "systems" / f"{name}.md").read_text("utf-8")
    program = re.search(r"^```python\n(.*?)^```", text, re.S | re.M)[1]
    assert len(program.splitlines()) <= 40
    for what, shorter in SHORTER:
        program = re.sub(what, shorter, program)
    options = {"compile": "live"} if backend == "torch" else {}
    space = {"__name__": name, "BACKEND": load(backend, "cpu", **options)}
    exec(compile(program, f"docs/systems/{name}.md", "exec"), space)
    return space


@pytest.mark.parametrize("name", ["vaebm", "exponential_tilting"])
def test_a_declaration_of_a_page_runs(name):
    """On torch; the studies run the same on JAX, at full length."""
    space = run_page(name, "torch")
    assert space["samples"]["x"].shape == (50, 2)
    assert np.isfinite(space["log_z"].estimate) and space["table"].num_data == 20


@pytest.mark.filterwarnings("ignore:log_partition")  # so short a fit has its mass far out
def test_the_page_on_energies_runs(backend_name):
    space = run_page("ebm", backend_name)
    assert space["samples"]["x"].shape == (50, 2) and "the density itself" in space["samples"].note
    assert space["table"].num_data == 300


def test_the_page_on_latent_em_runs():
    space = run_page("latent_em", "torch")
    assert space["samples"]["x"].shape == (50, 8, 8, 1) and space["codes"].shape == (5, 8)
    assert (np.diff(space["clusters"].history["log_likelihood"]) > 0).all()


def test_the_page_on_em_distillation_runs():
    space = run_page("emd", "torch")
    assert space["samples"]["x"].shape == space["slow"]["x"].shape == (360, 64)
    assert np.isfinite(space["samples"]["x"]).all() and "bias" in space["fitted"].history


def test_the_page_on_diffusions_runs():
    space = run_page("diffusion", "torch")
    assert space["samples"]["x"].shape == space["chain"]["x"].shape == (50, 64)
    assert space["draws"].posterior["x"].shape == (4, 5, 1, 64)
    errors = space["table"]["ProbabilityFlow(to 0.1 nats, hutchinson(5))"]["standard_error"]
    assert np.isfinite(errors).all()


def test_the_page_on_latent_diffusion_runs():
    """On torch; the study runs the same on JAX, at full length."""
    space = run_page("latent_diffusion", "torch")
    for samples in (space["samples"], space["others"]):
        assert samples["x"].shape == (50, 8, 8, 1) and samples["z"].shape == (50, 8)
    start = space["first"].params["decoder"]["out"]["weight"]
    np.testing.assert_array_equal(space["fits"]["energy"].params["decoder"]["out"]["weight"], start)
    for fitted in space["joint"].values():
        assert np.abs(fitted.params["decoder"]["out"]["weight"] - start).max() > 0
    assert set(space["joint"]) == {"energy", "diffusion"} and space["log_z"].standard_error > 0


def test_the_page_on_subjects_runs():
    space = run_page("hifi_tuner", "torch")
    assert space["samples"]["x"].shape == (16, 8, 8, 3) and "led by" in space["samples"].note
    assert space["disk"].params["condition"]["rows"].shape == (4, 3, 64)
