"""Reports: a page that stands by itself, says what it was given, and draws what it says."""

import base64
import functools
import html.parser
import io
import json
import re

import browser
import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import probgen as pg
from probgen import dist, nets
from probgen.errors import DeclarationError, SaveError, ShapeError
from probgen.evaluation import figures
from probgen.evaluation.page import (
    Code,
    Figure,
    Formula,
    ImageRows,
    Number,
    Numbers,
    Paragraph,
    Report,
    Row,
    Section,
    Table,
    with_error,
)
from probgen.evaluation.page.drawing import figure_svg, formula_svg
from probgen.views.graphs import graph_of
from probgen.views.palette import PALETTE
from probgen.views.picture import draw
from probgen.views.plates import Arrow, Graph, Node, plates_svg

VOID = {"meta", "link", "img", "br", "path", "rect", "circle", "use", "hr"}
RNG = np.random.default_rng(0)


def example() -> Report:
    """One block of each kind, twice where ids could clash."""
    curve = figures.curves(
        [figures.Curve(np.arange(9.0), np.arange(9.0) ** 2, n, n) for n in ("blue", "orange")],
        x_label="step", y_label="nats",
    )  # fmt: skip
    graph = Graph(
        [Node("w"), Node("z", plates=("data",)), Node("x", "observed", ("data",)),
         Node("theta", "parameter"), Node("phi", "parameter")],
        [Arrow("w", "x"), Arrow("z", "x"), Arrow("theta", "x"), Arrow("x", "z", True),
         Arrow("phi", "z", True)],
        {"data": "100 data"},
    )  # fmt: skip
    pictures = RNG.random((5, 6, 6, 1))
    return (
        Report("A <page> & more", "All blocks.", facts={"seed": 0, "gap": float("nan")})
        .add(Section("Numbers", Numbers([Number("The ELBO", -98.4, "nats", 0.9, "a note"),
                                         Number("Backend", "torch")])))
        .add(Section("Tables", Table(["name", "value"], [["a", 1.5], ["b", "two"]])))
        .add(Section("Figures", Figure(figure_svg(curve), "One.", "A curve.", numbers={"y": [1]}),
                     Figure(figure_svg(curve), "Two.", "The same.")))
        .add(Section("Model", Formula(r"p_\theta(x \mid z),\qquad q_\phi(z \mid x)"),
                     Figure(plates_svg(graph), "Graph.", "A graph.")))
        .add(Section("Pictures", ImageRows([Row("a", pictures), Row("b", pictures)], "Two.", "d")))
        .add(Section("Words", Paragraph("Use `code` & **care**."), Code("a < b"), text="First."))
    )  # fmt: skip


@functools.cache
def example_html() -> str:
    return example().html()


class Outline(html.parser.HTMLParser):
    """Ids, links and whether every tag is closed in its turn."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.ids, self.links, self.sources, self.tags = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append(tag)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [v for k, v in attrs if k in ("href", "xlink:href")]
        self.sources += [v for k, v in attrs if k in ("src", "srcset", "data", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"


# --- the page --------------------------------------------------------------------------------


def test_a_page_asks_nobody_for_anything():
    text = example_html()
    outline = Outline(text)
    assert "script" not in outline.tags and "iframe" not in outline.tags
    assert all(link.startswith(("#", "data:")) for link in outline.links)
    assert all(source.startswith("data:") for source in outline.sources)
    addresses = set(re.findall(r"https?://[^\s\"'<]+", text))
    assert all("www.w3.org" in a for a in addresses), addresses  # names of SVG, not addresses
    assert "@import" not in text and "default-src 'none'" in text.replace("&#x27;", "'")


def test_a_page_is_well_formed_and_its_ids_are_its_own():
    text = example_html()
    outline = Outline(text)
    assert outline.open == []
    assert len(outline.ids) == len(set(outline.ids))
    missing = [x for x in outline.links if x.startswith("#") and x[1:] not in outline.ids]
    assert not missing
    marks = set(re.findall(r"url\(#([^)]+)\)", text))
    assert marks and marks <= set(outline.ids)


@given(text=st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1))
def test_text_is_shown_and_never_obeyed(text):
    page = Report(text, text).add(Section("S", Code(text), Table([text], [[text]])))
    outline = Outline(page.html())
    assert outline.open == []
    assert set(outline.tags) <= {
        "html", "head", "meta", "title", "link", "style", "body", "header", "h1", "p", "main",
        "section", "h2", "div", "pre", "code", "table", "thead", "tbody", "tr", "th", "td",
        "strong",
    }  # fmt: skip


def test_the_json_beside_the_page_holds_its_numbers(tmp_path):
    path = example().save(tmp_path / "new" / "report.html")
    found = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert path.exists()
    elbo = found["sections"]["numbers"]["the_elbo"]
    assert elbo == {"value": -98.4, "standard_error": 0.9, "unit": "nats"}
    assert found["seed"] == 0 and found["gap"] is None  # JSON has no word for NaN
    assert found["sections"]["figures"]["y"] == [1]
    assert found["sections"]["tables"]["table"][0] == {"name": "a", "value": 1.5}


def test_a_save_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path = Report("old").save(tmp_path / "report.html")
    before = path.read_text(encoding="utf-8")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(SaveError, match="No space left"):
        Report("new").save(path)
    assert path.read_text(encoding="utf-8") == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "report.json"]


def test_sections_of_one_name_are_refused():
    with pytest.raises(DeclarationError, match="second section"):
        Report("x").add(Section("Same one")).add(Section("same  one"))


# --- blocks ----------------------------------------------------------------------------------


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e4))
def test_a_number_is_written_to_the_precision_of_its_error(value, error):
    """Rounding loses less than a tenth of the error, and the error keeps two digits."""
    shown, wrong = (
        float(part.replace(",", "").replace("−", "-"))
        for part in with_error(value, error).split(" ± ")
    )
    assert abs(shown - value) <= 0.051 * max(error, 10) if error >= 10 else 0.051 * error
    assert wrong == pytest.approx(error, rel=0.051)


def test_pictures_are_the_pixels_that_were_given():
    from PIL import Image

    images = np.round(RNG.random((3, 4, 4, 1)) * 31) / 31
    for ink in (False, True):
        block = ImageRows([Row("", images)], "", "", ink=ink, gap=0)
        (code,) = re.findall(r"base64,([^\"]+)", block.html("k"))
        seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(code))).convert("L")) / 255
        want = np.concatenate(list(images[..., 0]), axis=1)
        np.testing.assert_allclose(seen, 1 - want if ink else want, atol=1 / 255)


def test_pictures_and_tables_of_unequal_rows_are_refused():
    with pytest.raises(ShapeError, match="equal"):
        ImageRows([Row("", np.zeros((2, 4, 4, 1))), Row("", np.zeros((3, 4, 4, 1)))], "", "")
    with pytest.raises(ShapeError, match="channel axis"):
        ImageRows([Row("", np.zeros((2, 4, 4)))], "", "")
    with pytest.raises(ShapeError, match="2 cells"):
        Table(["a"], [["x", 1.0]])


def test_a_figure_follows_the_scheme_and_leaves_matplotlib_as_it_was():
    before = dict(matplotlib.rcParams)
    svg = figure_svg(figures.bars(np.arange(3.0), "abc", x_label="unit", y_label="nats"))
    assert dict(matplotlib.rcParams) == before
    for name, (light, _) in PALETTE.items():
        assert light not in svg.lower(), name
    assert "var(--blue)" in svg and ">nats<" in svg  # text stays text
    assert "<style" not in svg  # it would apply to the whole page


def test_a_formula_is_an_outline_and_an_unknown_one_is_shown_as_source():
    assert re.search(r'<path d="M[^"]{200,}"', formula_svg(r"\mathcal{N}(z;\ 0, I)"))
    assert formula_svg(r"\nosuchword{x}") == r"<code>\nosuchword{x}</code>"


# --- the graph -------------------------------------------------------------------------------


def test_causes_stand_above_effects_and_plates_hold_their_members():
    graph = Graph(
        [Node("a"), Node("b", plates=("p",)), Node("c", plates=("p", "q")),
         Node("d", "observed", ("p",))],
        [Arrow("a", "b"), Arrow("b", "c"), Arrow("c", "d"), Arrow("a", "d"),
         Arrow("d", "b", guide=True)],
    )  # fmt: skip
    depth = graph.layers()
    assert all(depth[a.start] < depth[a.end] for a in graph.arrows if not a.guide)
    svg = plates_svg(graph)
    centres = [tuple(map(float, m)) for m in re.findall(r'cx="([-\d.]+)" cy="([-\d.]+)"', svg)]
    boxes = [
        tuple(map(float, m))
        for m in re.findall(
            r'<rect x="([-\d.]+)" y="([-\d.]+)" width="([-\d.]+)" height="([-\d.]+)" rx="9"', svg
        )
    ]
    inside = [sum(x < cx < x + w and y < cy < y + h for x, y, w, h in boxes) for cx, cy in centres]
    assert inside == [0, 1, 2, 1]


def test_arrows_need_both_ends():
    with pytest.raises(DeclarationError, match="'b'"):
        Graph([Node("a")], [Arrow("a", "b")])


def hierarchy():
    """w -> (y | z, through a named value), z -> y; a guide that reads y."""

    @pg.model
    def program():
        w = pg.sample("w", dist.Normal(0, 1))
        with pg.data_plate():
            z = pg.sample("z", dist.Normal(0, 1).expand([2]).to_event(1))
            shown = pg.deterministic("shown", pg.net("f", nets.MLP(hidden=(4,), out=3))(z))
            pg.sample("y", dist.Normal(shown + w, 1.0).to_event(1))
            pg.sample("alone", dist.Normal(0, 1))

    @program.with_guide
    def guided(y):
        pg.sample("w", dist.Normal(0, 1))
        with pg.data_plate():
            h = pg.net("g", nets.MLP(hidden=(4,), out=2, heads=("loc", "log_scale")))(y)
            pg.sample("z", dist.Normal(h["loc"], pg.ops.exp(h["log_scale"])).to_event(1))
            pg.sample("alone", dist.Normal(0, 1))

    return draw(guided, {"y": (3,)})


def test_the_graph_has_the_dependences_of_the_program_and_no_others():
    graph = graph_of(hierarchy(), num_data=1234)
    model = {(a.start, a.end) for a in graph.arrows if not a.guide}
    guide = {(a.start, a.end) for a in graph.arrows if a.guide}
    assert model == {("w", "y"), ("shown", "y"), ("z", "shown"), ("f", "shown")}
    assert guide == {("y", "z"), ("g", "z")}
    kinds = {n.name: (n.kind, n.plates) for n in graph.nodes}
    assert kinds["y"] == ("observed", ("data",)) and kinds["w"] == ("latent", ())
    assert kinds["f"] == ("parameter", ()) and kinds["shown"][0] == "deterministic"
    assert ">1,234 data<" in plates_svg(graph)


def test_inputs_stand_in_the_graph_and_global_sites_outside_the_plate():
    @pg.model
    def regression(covariates):
        weights = pg.sample("weights", dist.Normal(0, 1).expand([3]).to_event(1))
        with pg.data_plate():
            pg.sample("y", dist.Normal(pg.ops.sum(covariates * weights, axis=-1), 1.0))

    data = {"covariates": np.ones((2, 3), np.float32), "y": np.zeros(2, np.float32)}
    graph = graph_of(draw(regression, data))
    assert {(a.start, a.end) for a in graph.arrows} == {("weights", "y"), ("covariates", "y")}
    plates = {n.name: n.plates for n in graph.nodes}
    assert plates == {"weights": (), "y": ("data",), "covariates": ("data",)}


# --- in a browser ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium():
    return browser.find()


PHONE = pytest.param(360, False, marks=pytest.mark.repeated(
    "test_evaluation_report.py::test_the_page_in_a_browser"
))  # fmt: skip


@pytest.mark.parametrize(("width", "dark"), [PHONE, (1100, True)])
def test_a_page_fits_a_phone_and_a_desk_in_both_schemes(chromium, width, dark):
    found, console = browser.look(chromium, example_html(), width, dark=dark)
    assert console == []
    assert found["frame"] == width and found["width"] <= width and found["wide"] == []
    assert found["cut"] == [] and found["smallest"] >= 8
    assert found["images"] == 2 and found["broken"] == 0 and found["tables"] == 1
    paper, ink = (sum(map(int, re.findall(r"\d+", found[k])[:3])) for k in ("paper", "ink"))
    assert (paper < ink) == dark


@pytest.mark.repeated("test_a_page_fits_a_phone_and_a_desk_in_both_schemes")
def test_the_browser_sees_what_is_wrong(chromium):
    """A page that breaks each rule: the checks above are not blind."""
    page = example_html()
    page = page.replace("</main>", '<div style="width:900px">wide</div><img src="data:image/png,x">'
                        '<img src="https://example.com/x.png"></main>')  # fmt: skip
    page = page.replace(">nats<", f">a title {'that is far longer than its figure is wide ' * 3}<")
    found, console = browser.look(chromium, page, 360)
    assert found["width"] > 360 and found["wide"]
    assert found["broken"] == 2 and found["cut"]
    assert any("Content Security Policy" in line for line in console)
