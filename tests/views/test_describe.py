"""The teaching view: tables that count right, formulas that render, pictures that tell the truth.

Laws: the edges of a picture are the dependencies that the program was written with, and the same on
both backends; every formula is one that matplotlib's mathtext can draw; parameters add up.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
from matplotlib.mathtext import MathTextParser
from test_laws_programs import FAMILIES

import probgen as pg
from probgen import dist, nets, ops
from probgen.engine.bind import bind
from probgen.engine.bound import parameter_count
from probgen.engine.fitted import Fitted
from probgen.models import VAE, Diffusion, Generator, NoiseSchedule, Tilted
from probgen.views import formula, picture


@pytest.fixture
def on(backend, monkeypatch):
    """Has the views run on this backend."""
    monkeypatch.setattr(picture, "resolve", lambda *a, **k: backend)
    return backend


@pytest.fixture(scope="module")
def kept():
    return {}


@pytest.fixture
def told(on, kept):
    """The picture of the story, drawn once on each backend."""
    if on.name not in kept:
        kept[on.name] = story.graph({"covariates": (2,)})
    return kept[on.name]


@pg.model
def story(covariates):
    """Every kind of edge: global, plated, discrete index, deterministic, factor, net, input."""
    tau = pg.sample("tau", dist.Exponential(2.0))
    with pg.plate("groups", 3):
        mu = pg.sample("mu", dist.Normal(0.0, 2.0))
    with pg.data_plate():
        c = pg.sample("class_id", dist.Categorical(probs=np.ones(3) / 3))
        z = pg.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        mean = pg.deterministic("mean", ops.take(mu, c) + ops.sum(z * covariates, axis=-1))
        pg.factor("pull_%", -0.1 * mean**2)
        shift = pg.net("head", nets.MLP(hidden=(3,), out=1))(z)[..., 0]
        with pg.plate("views", 2):
            pg.sample("y", dist.Normal(mean * 0.0 + shift, tau))


STORY_EDGES = {
    ("tau", "y"), ("mu", "mean"), ("class_id", "mean"), ("z", "mean"), ("covariates", "mean"),
    ("mean", "pull_%"), ("mean", "y"), ("z", "y"), ("head", "y"),
}  # fmt: skip


def edges_of(source: str) -> tuple[set, set]:
    """(solid, dashed) edges of graphviz source."""
    solid, dashed = set(), set()
    for a, t, rest in re.findall(r'"([^"]+)" -> "([^"]+)"(.*);', source):
        (dashed if "dashed" in rest else solid).add((a, t))
    return solid, dashed


def test_edges_are_the_dependencies_that_the_program_has(told):
    """mean * 0 + shift depends on mean by its text; z reaches y directly too, through the net."""
    solid, dashed = edges_of(told)
    assert solid == STORY_EDGES and not dashed


def test_a_guide_is_drawn_dashed(on):
    solid, dashed = edges_of(FAMILIES["VAE hierarchical"].model.graph())
    assert solid == {
        ("prior/z", "z"), ("z", "x"), ("prior/decoder", "z"), ("decoder", "x"),
    }  # fmt: skip
    assert dashed == {
        ("x", "z"), ("z", "prior/z"), ("encoder", "z"), ("prior/encoder", "prior/z"),
    }  # fmt: skip


def test_independent_sites_have_no_edge(on):
    @pg.model
    def apart():
        with pg.data_plate():
            pg.sample("a", dist.Normal(0.0, 1.0))
            pg.sample("b", dist.Bernoulli(probs=0.5))
            pg.sample("x", dist.Normal(0.0, 1.0))

    assert edges_of(apart.graph()) == (set(), set())


def test_a_net_whose_last_layer_is_zero_still_shows_its_edges(on):
    """NaN goes through a product with zero, where a small change would not be seen."""

    @pg.model
    def flat():
        with pg.data_plate():
            z = pg.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
            pg.sample("x", dist.Normal((z * 0.0).sum(-1), 1.0))

    assert edges_of(flat.graph())[0] == {("z", "x")}


def test_a_chain_of_discrete_variables_shows_its_edges(on):
    @pg.model
    def chain():
        with pg.data_plate():
            a = pg.sample("a", dist.Bernoulli(probs=0.5))
            b = pg.sample("b", dist.Bernoulli(logits=2.0 * a - 1.0))
            pg.sample("x", dist.Normal(1.0 + b, 1.0))

    assert edges_of(chain.graph())[0] == {("a", "b"), ("b", "x")}


def test_plates_nest_and_observed_nodes_are_shaded(told):
    source, data = told, told.index('subgraph "cluster_data"')
    inner = source.index('subgraph "cluster_data_views"')
    assert source.index('"mu" [') < data < source.index('"z" [') < inner < source.index('"y" [')
    assert data < source.index('"covariates" [')
    assert 'label="views: 2"' in source and 'label="data: N"' in source
    vae = FAMILIES["VAE Bernoulli"].model.graph()
    assert '"x" [fillcolor=lightgray]' in vae and '"z" [fillcolor=white]' in vae
    assert '"tilt" [shape=square' in FAMILIES["EBM"].model.graph()


def test_braces_and_quotes_of_the_source_balance():
    source = story.graph({"covariates": (2,)})
    assert source.count("{") == source.count("}") and source.count('"') % 2 == 0


# ---- formulas ------------------------------------------------------------------------------------

PARSER = MathTextParser("path")


def renders(text: str) -> None:
    """mathtext draws it with some width; it raises on a command that it does not know."""
    assert PARSER.parse(f"${text}$").width > 0


@pytest.mark.parametrize("name", FAMILIES)
def test_every_familys_formula_renders(name):
    renders(FAMILIES[name].model.latex())


def test_a_composed_formula_renders_and_names_what_each_site_depends_on():
    text = story.latex({"covariates": (2,)})
    renders(text)
    assert r"p_\theta(\tau, \mu, \mathrm{class\_id}, z, y \mid \mathrm{covariates}) \propto" in text
    assert r"\mathrm{Exponential}(\tau;\ 2)" in text
    assert r"\prod_{i=1}^{3} \mathcal{N}(\mu_{i};\ 0, 2^2)" in text
    assert (
        r"\prod_{n=1}^{N} \left[" in text and r"\prod_{j=1}^{2} \mathcal{N}_\theta(y_{n,j}" in text
    )
    assert r"e^{f_{\mathrm{pull\_\%}}" in text


def test_a_normalised_program_has_an_equality():
    @pg.model
    def plain():
        w = pg.sample("w", dist.Normal(0.0, 1.0))
        with pg.data_plate():
            pg.sample("x_1", dist.Normal(w, 1.0))

    text = plain.latex()
    renders(text)
    assert (
        text == r"p(w, x_{1}) = \mathcal{N}(w;\ 0, 1)\ \prod_{n=1}^{N} \mathcal{N}(x_{1,n} \mid w)"
    )


@pytest.mark.parametrize("name", ["a#b", "a&b", "50%", "a_b_c", "x^2", "prior/z", "$", "\\x", "ä"])
def test_any_site_name_is_escaped(name):
    renders(formula.symbol(name, ("n",)))


@pytest.mark.parametrize(
    "name, expected",
    [("x", "x"), ("x_3", "x_{3}"), ("mu", r"\mu"), ("mu_2", r"\mu_{2}"), ("x_T", "x_{T}"),
     ("weights", r"\mathrm{weights}")],
)  # fmt: skip
def test_names_become_symbols(name, expected):
    assert formula.symbol(name) == expected


# ---- tables --------------------------------------------------------------------------------------


def test_the_table_counts_parameters(on):
    model = FAMILIES["VAE Bernoulli"].model
    _, params = bind(model, on)
    total = sum(parameter_count(params).values())
    assert total == 150  # 2*7+7 + 7*6+6 and 6*7+7 + 7*4+4
    text = model.describe()
    assert re.search(rf"^total\s+{total}$", text, re.MULTILINE)
    assert re.search(r"^decoder\s+MLP\(hidden=\(7,\), out=6\)\s+69$", text, re.MULTILINE)
    assert re.search(r"layer0/weight\s+14\s+\[2, 7\]", text)


def test_the_table_names_kinds_shapes_plates_and_supports(on):
    text = story.describe({"covariates": (2,)})
    for pattern in (
        r"tau\s+global latent\s+Exponential\(rate=2\)\s+-\s+scalar\s+positive",
        r"mu\s+global latent\s+Normal\(loc=0, scale=2\)\s+groups \(3\)\s+scalar\s+real",
        r"z\s+latent\s+Normal\(loc=0, scale=1\)\s+data\s+\[2\]\s+real",
        r"mean\s+deterministic",
        r"pull_%\s+factor",
        r"y\s+latent\s+Normal\(loc=\.\.\., scale=\.\.\.\)\s+data, views \(2\)",
    ):
        assert re.search(pattern, text), (pattern, text)


def test_the_table_is_the_same_on_both_backends(on):
    """The text never quotes a framework."""
    text = story.describe({"covariates": (2,)})
    assert text == EXPECTED.setdefault("story", text)


EXPECTED: dict[str, str] = {}


def test_an_unnormalised_density_is_said_to_be_one():
    assert "known up to a constant" in FAMILIES["EBM"].model.describe()
    assert "known up to a constant" not in FAMILIES["Generator"].model.describe()


def test_a_fitted_model_describes_itself_and_frozen_parts_are_marked(on):
    model = FAMILIES["Generator"].model
    _, params = bind(model, on)
    fitted = Fitted(model, on.tree_map(on.to_numpy, params))
    assert fitted.describe() == model.describe()
    assert fitted.graph() == model.graph() and fitted.latex() == model.latex()
    tilted = Tilted(fitted, nets.MLPEnergy(hidden=(4,)))
    assert re.search(r"decoder\s+MLP.*frozen", tilted.describe())
    assert not re.search(r"energy\s+MLP.*frozen", tilted.describe())


def test_a_chain_of_a_thousand_steps_is_drawn_with_three():
    model = Diffusion(nets.MLP(hidden=(8,), out=6), (6,))
    text, source = model.describe(), model.graph()
    assert "3 of its 1000 steps" in text and "3 of its 1000 steps" in source
    assert {("x_3", "x_2"), ("x_2", "x_1"), ("x_1", "x")} <= edges_of(source)[0]
    short = Diffusion(nets.MLP(hidden=(8,), out=6), (6,), NoiseSchedule(4))
    assert "steps" not in short.describe()


def test_observed_sites_are_what_data_are_given_for():
    @pg.model
    def two():
        with pg.data_plate():
            a = pg.sample("a", dist.Normal(0.0, 1.0))
            pg.sample("b", dist.Normal(a, 1.0))

    assert '"b" [fillcolor=lightgray]' in two.graph({"b": ()})
    assert '"a" [fillcolor=lightgray]' in two.graph({"a": np.zeros(5)})


def test_the_picture_of_a_custom_prior_composes():
    inner = Generator(
        dist.Normal(0, 1).expand([2]).to_event(1), nets.MLP(hidden=(), out=3), dist.Normal
    )
    outer = VAE(
        inner, nets.MLP(hidden=(), out=4), dist.Bernoulli,
        nets.MLP(hidden=(), out=3, heads=("loc", "log_scale")),
    )  # fmt: skip
    solid, _ = edges_of(outer.graph())
    assert {("prior/z", "z"), ("z", "x"), ("prior/likelihood", "z")} <= solid


@pg.model
def conditional(t):
    with pg.data_plate():
        z = pg.sample("z", dist.Normal(0.0, 1.0))
        pg.sample("y", dist.Normal(z + t, 1.0))


@pytest.mark.parametrize(("data", "inputs"), [
    ({"y": np.zeros(9), "t": np.zeros(9)}, None), ({"y": np.zeros(9)}, {"t": np.zeros(9)}),
    (None, {"t": np.zeros(9)}), (None, {"t": ()}), ({"t": np.zeros(1)}, None),
    (None, {"t": 2.0}), ({"y": np.zeros(9)}, {"t": np.zeros(1)}),
])  # fmt: skip
def test_inputs_are_given_as_the_verbs_take_them(on, data, inputs):
    text = conditional.describe(data, inputs)
    assert re.search(r"y +(latent|observed) +Normal\(loc=\.\.\., scale=1\) +data +scalar", text)


def test_a_fitted_model_knows_the_inputs_that_its_formula_needs(on):
    fitted = Fitted(conditional, {}, shapes={"y": (), "t": ()})
    assert fitted.latex() == conditional.latex({"y": np.zeros(3)}, {"t": np.zeros(3)})
    assert r"\mid t" in fitted.latex()
