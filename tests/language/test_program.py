"""The words of a program: what they mean, and how they refuse what does not fit."""

import numpy as np
import pytest
import scipy.stats as st

import probgen as pg
from probgen import dist, nets
from probgen.engine.bind import bind
from probgen.errors import DeclarationError, DuplicateSite, ShapeError, UnknownName
from probgen.models import Generator

RNG = np.random.default_rng(0)


def run(backend, program, *, params=None, values=None, inputs=None, batch_size=None, seed=0):
    """One run of a bare program, values on the backend."""
    as_array = {k: backend.asarray(np.asarray(v)) for k, v in (values or {}).items()}
    return backend.trace(
        program,
        params or {},
        values=as_array,
        inputs=inputs or {},
        key=backend.key(seed),
        batch_size=batch_size,
    )


# ---- names ---------------------------------------------------------------------------------------


def test_a_duplicate_site_is_refused_with_both_lines(backend):
    def program():
        pg.sample("z", dist.Normal(0.0, 1.0))
        pg.sample("z", dist.Normal(0.0, 1.0))

    first = program.__code__.co_firstlineno + 1
    here = rf"test_program\.py:{first} and at test_program\.py:{first + 1}"
    with pytest.raises(DuplicateSite, match=f"site 'z'.*{here}"):
        run(backend, program)


@pytest.mark.parametrize("again", ["factor", "deterministic", "plate"])
def test_every_word_that_names_a_site_shares_one_set_of_names(backend, again):
    def program():
        pg.sample("a", dist.Normal(0.0, 1.0))
        if again == "plate":
            with pg.plate("a", 2):
                pass
        else:
            getattr(pg, again)("a", 0.0)

    with pytest.raises(DuplicateSite, match="'a'"):
        run(backend, program)


def test_a_word_outside_a_run_says_what_a_program_is_for():
    for call in (
        lambda: pg.sample("z", dist.Normal(0.0, 1.0)),
        lambda: pg.factor("f", 0.0),
        lambda: pg.deterministic("d", 0.0),
        lambda: pg.net("n", nets.MLP(hidden=(2,), out=1)),
        lambda: pg.data_plate().__enter__(),
        lambda: pg.plate("p", 2).__enter__(),
    ):
        with pytest.raises(DeclarationError, match=r"outside a run.*@pg\.model"):
            call()


@pytest.mark.parametrize("name", ["", None, 3])
def test_a_name_must_be_a_string(backend, name):
    with pytest.raises(DeclarationError, match="expected a non-empty string"):
        run(backend, lambda: pg.sample(name, dist.Normal(0.0, 1.0)))


def test_a_distribution_that_is_none_is_refused(backend):
    with pytest.raises(DeclarationError, match=r"site 'z'.*expected a distribution"):
        run(backend, lambda: pg.sample("z", 3.0))


# ---- shapes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [2, 3, 5])  # 3 is the stray axis's own size
def test_a_forgotten_to_event_names_site_shape_and_cure(backend, batch_size):
    def program():
        with pg.data_plate():
            pg.sample("x", dist.Normal(0.0, 1.0).expand([batch_size, 3]))

    with pytest.raises(ShapeError, match=rf"site 'x'.*\({batch_size}, 3\).*\.to_event\(1\)"):
        run(backend, program, batch_size=batch_size)


def test_a_forgotten_to_event_is_seen_also_when_the_batch_has_its_size(backend):
    """A latent [3] in a batch of 3 would broadcast silently; binding looks at one datum first."""

    @pg.model
    def model():
        with pg.data_plate():
            z = pg.sample("z", dist.Normal(0.0, 1.0).expand([3]))
            pg.sample("x", dist.Normal(z, 1.0))

    with pytest.raises(ShapeError, match=r"site 'z'.*\.to_event\(1\)"):
        bind(model, backend, data={"x": np.zeros(3, np.float32)})


def test_a_forgotten_to_event_in_a_likelihood_is_seen_at_batch_size_one(backend):
    @pg.model
    def model():
        with pg.data_plate():
            z = pg.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
            pg.sample("x", dist.Normal(pg.net("f", nets.MLP(hidden=(), out=1))(z), 1.0))

    with pytest.raises(ShapeError, match=r"site 'x'.*\.to_event\(1\)"):
        bind(model, backend, data={"x": np.zeros((4, 1), np.float32)})


def test_a_vector_outside_of_plates_is_refused(backend):
    with pytest.raises(ShapeError, match=r"site 'w'.*none outside of a plate.*\.to_event\(1\)"):
        run(backend, lambda: pg.sample("w", dist.Normal(0.0, 1.0).expand([3])))


def test_a_factor_must_have_one_value_a_datum(backend):
    def program():
        with pg.data_plate():
            x = pg.sample("x", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
            pg.factor("tilt", -(x * x))

    with pytest.raises(ShapeError, match="site 'tilt'"):
        run(backend, program, batch_size=4)


def test_a_factor_adds_its_value_to_the_log_joint(backend):
    def program():
        with pg.data_plate():
            x = pg.sample("x", dist.Normal(0.0, 1.0))
            pg.factor("tilt", -x * x)

    x = np.array([0.5, -2.0], np.float32)
    sites = run(backend, program, values={"x": x}, batch_size=2)
    assert sites["tilt"].is_local and sites["tilt"].kind == "factor"
    np.testing.assert_allclose(backend.to_numpy(sites["tilt"].log_prob), -x * x, rtol=1e-6)


# ---- plates --------------------------------------------------------------------------------------


def test_inner_plates_are_summed_and_the_data_plate_is_kept(backend):
    def program():
        with pg.plate("groups", 3):
            pg.sample("mu", dist.Normal(0.0, 1.0))
        with pg.data_plate():
            pg.sample("z", dist.Normal(0.0, 1.0))
            with pg.plate("views", 2), pg.plate("parts", 4):
                pg.sample("y", dist.Normal(0.0, 2.0))

    values = {
        "mu": RNG.normal(size=3),
        "z": RNG.normal(size=5),
        "y": RNG.normal(size=(4, 2, 5)),
    }
    sites = run(backend, program, values=values, batch_size=5)
    got = {n: backend.to_numpy(s.log_prob) for n, s in sites.items()}
    np.testing.assert_allclose(got["mu"], st.norm.logpdf(values["mu"]).sum(), rtol=1e-5)
    np.testing.assert_allclose(got["z"], st.norm.logpdf(values["z"]), rtol=1e-5)
    np.testing.assert_allclose(got["y"], st.norm(0, 2).logpdf(values["y"]).sum((0, 1)), rtol=1e-5)
    assert [sites[n].is_local for n in ("mu", "z", "y")] == [False, True, True]


def test_a_plate_repeats_what_its_distribution_says_once(backend):
    """One Normal in a plate of 4: four draws, each with its own density."""

    def program():
        with pg.plate("four", 4):
            pg.sample("a", dist.Normal(0.0, 1.0))

    site = run(backend, program)["a"]
    value = backend.to_numpy(site.value)
    assert value.shape == (4,) and len(set(value.tolist())) == 4
    np.testing.assert_allclose(
        backend.to_numpy(site.log_prob), st.norm.logpdf(value).sum(), rtol=1e-5
    )


def test_the_data_plate_inside_itself_changes_nothing(backend):
    def nested():
        with pg.data_plate(), pg.data_plate():
            pg.sample("x", dist.Normal(0.0, 1.0))

    def flat():
        with pg.data_plate():
            pg.sample("x", dist.Normal(0.0, 1.0))

    a = run(backend, nested, batch_size=3)["x"]
    b = run(backend, flat, batch_size=3)["x"]
    np.testing.assert_array_equal(backend.to_numpy(a.log_prob), backend.to_numpy(b.log_prob))


@pytest.mark.parametrize("size", [0, -1, 2.0, None])
def test_a_plate_needs_a_positive_size(backend, size):
    def program():
        with pg.plate("p", size):
            pg.sample("a", dist.Normal(0.0, 1.0))

    with pytest.raises(DeclarationError, match="plate 'p'.*expected a whole number"):
        run(backend, program)


def test_a_plate_inside_itself_is_refused(backend):
    def program():
        with pg.plate("p", 2), pg.plate("p", 2):
            pg.sample("a", dist.Normal(0.0, 1.0))

    with pytest.raises(DuplicateSite, match="plate 'p' is opened inside itself"):
        run(backend, program)


def test_a_plate_keeps_its_axis(backend):
    def program():
        with pg.plate("p", 2):
            pg.sample("a", dist.Normal(0.0, 1.0))
        with pg.plate("q", 3), pg.plate("p", 2):
            pg.sample("b", dist.Normal(0.0, 1.0))

    with pytest.raises(DeclarationError, match="plate 'p'.*axis -1 and on axis -2"):
        run(backend, program)


def test_a_plate_opened_again_must_have_its_size(backend):
    def program():
        with pg.plate("p", 2):
            pg.sample("a", dist.Normal(0.0, 1.0))
        with pg.plate("p", 3):
            pg.sample("b", dist.Normal(0.0, 1.0))

    with pytest.raises(DeclarationError, match="plate 'p'.*size"):
        run(backend, program)


def test_a_plate_must_not_be_called_like_the_data_plate(backend):
    def program():
        with pg.plate("data", 2):
            pg.sample("a", dist.Normal(0.0, 1.0))

    with pytest.raises(DuplicateSite, match="data plate"):
        run(backend, program, batch_size=2)


def test_the_data_plate_needs_a_batch(backend):
    def program():
        with pg.data_plate():
            pg.sample("x", dist.Normal(0.0, 1.0))

    with pytest.raises(DeclarationError, match="size of the batch is not known"):
        run(backend, program)


# ---- nets ----------------------------------------------------------------------------------------

MLP = nets.MLP(hidden=(4,), out=2)


def test_an_unknown_net_is_refused_with_a_hint(backend):
    def program(x):
        pg.deterministic("y", pg.net("decoder", MLP)(x))

    inputs = {"x": backend.asarray(np.zeros((1, 3), np.float32))}
    with pytest.raises(UnknownName, match=r"net 'decoder'.*did you mean 'decodr'"):
        run(backend, program, params={"decodr": {}}, inputs=inputs)


def test_one_name_stands_for_one_net(backend):
    @pg.model
    def model(x):
        with pg.data_plate():
            a = pg.net("f", MLP)(x)
            b = pg.net("f", nets.MLP(hidden=(5,), out=2))(x)
            pg.sample("y", dist.Normal(a + b, 1.0).to_event(1))

    with pytest.raises(DeclarationError, match="net 'f'.*one network per name"):
        bind(model, backend, data={"x": np.zeros((2, 3), np.float32)})


def test_two_calls_with_one_name_share_parameters(backend):
    @pg.model
    def model(x):
        with pg.data_plate():
            pg.deterministic("a", pg.net("f", MLP)(x))
            pg.deterministic("b", pg.net("f", MLP)(x))

    rows = {"x": RNG.normal(size=(2, 3)).astype(np.float32)}
    bound, params = bind(model, backend, data=rows)
    sites = bound.trace(params, {k: backend.asarray(v) for k, v in rows.items()})
    assert list(params) == ["f"]
    np.testing.assert_array_equal(
        backend.to_numpy(sites["a"].value), backend.to_numpy(sites["b"].value)
    )


# ---- parts ---------------------------------------------------------------------------------------

LAYER = Generator(
    latent=dist.Normal(0, 1).expand([2]).to_event(1), decoder=MLP, likelihood=dist.Normal
)


def test_a_submodel_prefixes_its_sites_and_nets_and_renames_what_is_asked(backend):
    @pg.model
    def model():
        with pg.data_plate():
            first = pg.submodel("one", LAYER)
            second = pg.submodel("two", LAYER, rename={"x": "top"})
            assert set(first) == set(second) == {"z", "x"}
            total = first["x"] + second["x"]
            pg.sample("x", dist.Normal(total, 1.0).to_event(1))

    bound, params = bind(model, backend, data={"x": np.zeros((2, 2), np.float32)})
    assert set(bound.structure.sites) == {"one/z", "one/x", "two/z", "top", "x"}
    assert set(params) == {"one/decoder", "one/likelihood", "two/decoder", "two/likelihood"}


def test_a_submodel_with_an_empty_name_keeps_its_names(backend):
    @pg.model
    def model():
        inner = pg.submodel("", LAYER)
        with pg.data_plate():
            pg.factor("tilt", -(inner["x"] ** 2).sum(-1))

    bound, params = bind(model, backend, data={"x": np.zeros((2, 2), np.float32)})
    assert set(bound.structure.sites) == {"z", "x", "tilt"}
    assert set(params) == {"decoder", "likelihood"}


def test_two_submodels_of_one_name_collide(backend):
    @pg.model
    def model():
        pg.submodel("one", LAYER)
        pg.submodel("one", LAYER)

    with pytest.raises(DuplicateSite, match="'one/z'"):
        bind(model, backend, data={})


# ---- inputs and data -----------------------------------------------------------------------------


def test_data_under_an_unknown_name_are_refused_with_a_hint(backend):
    with pytest.raises(UnknownName, match=r"data 'xx'.*did you mean 'x'"):
        bind(LAYER, backend, data={"xx": np.zeros((2, 2), np.float32)})


def test_a_missing_input_is_named(backend):
    @pg.model
    def model(covariates):
        with pg.data_plate():
            pg.sample("y", dist.Normal(covariates, 1.0))

    with pytest.raises(UnknownName, match=r"'covariates'.*inputs=\{"):
        bind(model, backend, data={"y": np.zeros(3, np.float32)})


def test_a_site_with_obs_is_no_latent(backend):
    """obs= in the program observes for good; data given to a verb go before it."""

    @pg.model
    def model(y):
        mu = pg.sample("mu", dist.Normal(0.0, 1.0))
        with pg.data_plate():
            pg.sample("x", dist.Normal(mu, 1.0), obs=y)

    bound, _ = bind(model, backend, data={"y": np.zeros(3, np.float32)})
    assert bound.latents == ("mu",)
