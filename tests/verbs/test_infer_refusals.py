"""What `pg.infer`, `NUTS` and `HMC` refuse, and with which words."""

import pytest
from infer_cases import EVENTS, TINY, Y, counts, quick, regression, run

import probgen as pg
from probgen import dist, nets
from probgen.errors import (
    AlgorithmError,
    DeclarationError,
    DuplicateSite,
    MissingSeed,
    NonFiniteError,
    SupportError,
    UnknownName,
)
from probgen.inference import HMC, NUTS


@pytest.fixture(scope="module")
def small(backend_name):
    return quick(backend_name)


@pytest.mark.parametrize(
    "word, right",
    [("warmup_steps", "num_warmup"), ("full_mass", "dense_mass"), ("jit_compile", "compiled"),
     ("disable_progbar", "progress_bar"), ("draws", "num_samples"), ("num_sample", "num_samples"),
     ("target_accept", "target_accept_prob"), ("initial_params", "init_strategy")],
)  # fmt: skip
def test_words_of_others_are_refused_with_the_right_one(word, right):
    for method in (NUTS, HMC):
        with pytest.raises(UnknownName, match=f"got {word}, expected .*{right}"):
            method(**{word: 1})


@pytest.mark.parametrize(
    "options",
    [{"num_samples": 0}, {"num_warmup": -1}, {"num_chains": 1.5}, {"step_size": 0.0},
     {"target_accept_prob": 1.0}, {"thinning": 2000}, {"dense_mass": ["top"]},
     {"init_strategy": "median"}],
)  # fmt: skip
def test_options_out_of_range_are_refused(options):
    with pytest.raises(DeclarationError, match=f"got {next(iter(options))}="):
        NUTS(**options)


def test_options_of_one_method_only():
    with pytest.raises(UnknownName, match="trajectory_length"):
        NUTS(trajectory_length=1.0)
    with pytest.raises(DeclarationError, match="expected one of them"):
        HMC(trajectory_length=1.0, num_steps=3)
    with pytest.raises(DeclarationError, match="by name"):
        NUTS(regression)


def test_what_cannot_be_inferred_is_refused_by_name(small):
    @pg.model
    def mixture():
        k = pg.sample("k", dist.Poisson(1.0))
        pg.sample("x", dist.Normal(k * 1.0, 1.0))

    @pg.model
    def observed():
        with pg.data_plate():
            pg.sample("y", dist.Normal(0.0, 1.0))

    @pg.model
    def broken():
        a = pg.sample("a", dist.Normal(0.0, 1.0))
        pg.factor("bad", pg.ops.log(-1.0 - a * a))

    @pg.model
    def untrained():
        z = pg.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        with pg.data_plate():
            pg.sample("y", dist.Normal(pg.net("decoder", nets.MLP(out=1))(z)[..., 0], 1.0))

    @pg.model
    def named():
        pg.sample("draw", dist.Normal(0.0, 1.0))

    @pg.model
    def named_data():
        pg.sample("data", dist.Normal(0.0, 1.0))

    with pytest.raises(AlgorithmError, match="'draw'.*ArviZ"):
        run(named, None, small)
    with pytest.raises(DuplicateSite, match="'data' is declared at a plate"):
        run(named_data, None, small)
    with pytest.raises(AlgorithmError, match="latent 'k'.*discrete.*finitely many values"):
        run(mixture, None, small)
    with pytest.raises(AlgorithmError, match="at least one latent"):
        run(observed, {"y": Y}, small)
    with pytest.raises(NonFiniteError, match="chain 0 of 'broken'.*'bad'"):
        run(broken, None, small, NUTS(**TINY, engine="probgen"))
    with pytest.raises(AlgorithmError, match=r"nets \['decoder'\].*no parameters"):
        run(untrained, {"y": Y}, small)
    with pytest.raises(SupportError, match="data 'events': 1 of 2 events lie outside"):
        run(counts, {"events": -EVENTS}, small, NUTS(**TINY))
    with pytest.raises(UnknownName, match="init_strategy names 'ratio'.*did you mean 'rate'"):
        run(counts, {"events": EVENTS}, small, NUTS(init_strategy={"ratio": 1.0}))
    with pytest.raises(UnknownName, match="eventz"):
        run(counts, {"eventz": EVENTS}, small)


def test_calls_that_lack_something_are_refused(small):
    with pytest.raises(MissingSeed, match="got no seed"):
        run(counts, {"events": EVENTS}, small, seed=None)
    with pytest.raises(MissingSeed, match="seed='a'"):
        run(counts, {"events": EVENTS}, small, seed="a")
    with pytest.raises(DeclarationError, match="expected a sampler such as"):
        run(counts, {"events": EVENTS}, small, NUTS)
    with pytest.raises(DeclarationError, match=r"decorate it with @pg\.model"):
        run(lambda: None, None, small)
