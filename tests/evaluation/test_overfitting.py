"""The section on training and held-out data claims what their errors allow, without log Z too."""

import json

import numpy as np
import pytest

import probgen as pg
from probgen import dist, evaluation, nets
from probgen.errors import AlgorithmError
from probgen.evaluation.page.overfitting import difference
from probgen.inference import UnnormalizedLogDensity
from probgen.models import EBM

NAME, UNIT = "IWAE(10)", "nats"


def table(values, shared=0.0):
    """A measure of likelihood of these estimates, with an error that all share."""
    group = {"estimate": values, "standard_error": np.full_like(values, shared)}
    return pg.Evaluation.from_values(
        {NAME: group}, units={NAME: UNIT}, larger_is_stranger={NAME: False},
        shared_error={NAME: True},
    )  # fmt: skip


def test_the_difference_claims_what_its_errors_allow():
    """Of draws of one law 5 % are called different, on either side; a shift is said with its size,
    whatever error of log Z both share."""
    rng = np.random.default_rng(0)
    said = []
    for _ in range(400):
        x, y = rng.normal(-90, 3, 80), rng.normal(-90, 3, 50)
        said.append(difference(table(x), table(y), NAME).verdict)
    rate = np.mean([s != "no difference shown" for s in said])
    assert abs(rate - 0.05) < 5 * (0.05 * 0.95 / 400) ** 0.5
    x = rng.normal(-90, 3, 400)
    for shift, verdict in ((5.0, "overfits"), (-5.0, "held-out data are likelier")):
        found = difference(table(x + shift, 50.0), table(x, 50.0), NAME)
        assert found.verdict == verdict and found.nats == pytest.approx(shift)
        assert found.error == pytest.approx(x.std(ddof=1) * (2 / 400) ** 0.5)
    assert "beyond the errors" in found.text("log p", "digits")
    same = difference(table(x), table(x), NAME)
    assert same.nats == 0 and "no overfitting is shown" in same.text("log p", "digits")
    impossible = np.append(x[:-1], -np.inf)
    for one, other in ((x, impossible), (impossible, x), (impossible, impossible)):
        found = difference(table(one), table(other), NAME)
        assert found.verdict == "not comparable" and "do not compare" in found.text(NAME, "X")


def test_a_page_of_an_energy_draws_both_sets_and_says_so(tmp_path):
    """-E of training data two nats above held-out data, without a log Z."""
    model = EBM(nets.MLPEnergy(()), dist.Normal(0.0, 1.0).expand([1]).to_event(1))
    energy = {"out": {"weight": np.float32([[-2.0]]), "bias": np.float32([0.0])}}
    fitted = pg.Fitted(model, {"energy": energy}, shapes={"x": (1,)})
    x = np.random.default_rng(0).normal(0, 0.1, (60, 1)).astype(np.float32)
    train, own = (
        pg.evaluate(fitted, v, [UnnormalizedLogDensity()], seed=0, backend="jax",
                    progress_bar=False)
        for v in (x + 1.0, x)
    )  # fmt: skip
    path = evaluation.report(
        fitted, own, path=tmp_path / "page.html", name="held-out numbers", train_table=train,
        progress_bar=False,
    )  # fmt: skip
    text = path.read_text()
    assert "nats likelier</strong> than held-out numbers" in text and "overfits" in text
    assert "+ constant" in text and "the size says nothing" in text
    found = json.loads(path.with_suffix(".json").read_text())["sections"]["overfitting"]
    (kept,) = found["overfitting"].values()
    # log N(x; 0, 1) + 2 x: 2 - 1/2 at 1 and 0 at 0, the same spread.
    assert kept["verdict"] == "overfits" and abs(kept["nats"] - 1.5) < 0.05
    other = table(np.zeros(5))
    with pytest.raises(AlgorithmError, match="of 'the training data', expected"):
        evaluation.report(fitted, own, path=tmp_path / "b.html", train_table=other)
