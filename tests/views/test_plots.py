"""Results are looked at: figures hold the numbers that they are of, and say what they show."""

import numpy as np
import pytest
from matplotlib.figure import Figure

import probgen as pg
from probgen import dist
from probgen.data.images import Images
from probgen.errors import DeclarationError, UnknownName
from probgen.verbs.generate import Samples


def history():
    out = pg.History()
    steps = np.arange(200.0)
    out.extend({"elbo": -100 + steps, "loss": 100 - steps, "kl_units": np.ones((200, 2))})
    out.add_validation(99, {"elbo": -5.0})
    out.add_validation(199, {"elbo": 60.0})
    return out


def table():
    values = {"estimate": np.arange(50.0), "standard_error": np.ones(50)}
    return pg.Evaluation.from_values(
        {"m": values}, units={"m": "nats"}, larger_is_stranger={"m": False}
    )


def samples():
    rng = np.random.default_rng(0)
    return Samples(x=rng.uniform(size=(9, 5, 4, 1)), z=rng.normal(size=(9, 2)), t=np.ones(9))


def normals():
    with pg.data_plate():
        z = pg.sample("z", dist.Normal(0.0, 1.0))
        pg.sample("x", dist.Normal(z, 1.0))


def shown(figure):
    assert isinstance(figure, Figure)
    return [axes for axes in figure.axes if axes.get_visible()]


def test_a_history_draws_its_metrics_and_what_was_held_out():
    elbo, loss = shown(history().plot())
    np.testing.assert_array_equal(elbo.lines[0].get_ydata(), -100 + np.arange(200.0))
    np.testing.assert_array_equal(elbo.lines[2].get_xdata(), [99, 199])
    np.testing.assert_array_equal(elbo.lines[2].get_ydata(), [-5.0, 60.0])
    assert loss.get_title(loc="left") == "loss"
    (units,) = shown(history().plot("kl_units"))
    assert units.lines[0].get_ydata().shape == (2,)  # a row for every window of steps
    fitted = pg.Fitted(pg.model(lambda: None), {}, history())
    assert len(shown(fitted.plot(["loss"]))) == 1


def test_a_table_draws_its_estimates():
    (axes,) = shown(table().plot())
    assert sum(patch.get_height() for patch in axes.patches) == 50
    assert axes.lines[0].get_xdata()[0] == 24.5 and axes.get_xlabel() == "nats"


def test_samples_are_pictures_points_and_numbers():
    pictures, points, numbers = shown(samples().plot())
    drawn = pictures.images[0].get_array()
    np.testing.assert_array_equal(drawn[:5, :4], samples()["x"][0, ..., 0])
    np.testing.assert_array_equal(drawn[6:11, 5:9], samples()["x"][4, ..., 0])
    np.testing.assert_array_equal(points.lines[0].get_xydata(), samples()["z"])
    assert numbers.get_title(loc="left") == "t: 9 draws"


@pytest.mark.parametrize("of", [history, table, samples])
def test_a_notebook_shows_text_and_picture(of):
    page = of()._repr_html_()
    assert page.startswith("<pre>") and "<svg" in page and page.rstrip().endswith("</svg>")
    with pytest.raises(UnknownName, match="plot: got 'nothing', expected some of"):
        of().plot("nothing")


def test_a_notebook_shows_a_fitted_models_picture():
    fitted = pg.Fitted(pg.model(normals), {}, shapes={"x": ()})
    page = fitted._repr_html_()
    assert page.startswith("<pre>Fitted(") and page.count("<circle") == 2


def test_images_print_a_line():
    images = Images(np.linspace(0, 1, 24, dtype=np.float32).reshape(2, 3, 4, 1), None, "ramp")
    assert repr(images) == "Images('ramp', 2 x 3 x 4 x 1, float32 in [0, 1], no labels)"


def test_a_models_graph_is_a_drawing_too():
    model = pg.model(normals)
    drawing = model.graph(form="svg")
    assert drawing.startswith("<svg xmlns") and drawing.count("<circle") == 2
    assert "var(--" not in drawing and "digraph" in model.graph()
    with pytest.raises(DeclarationError, match="got form='png'"):
        model.graph(form="png")
