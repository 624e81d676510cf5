import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from markupsafe import escape

from compare_cases import FakeTrainer, detections, small_recipe, write_data
from detrlab.compare import compare
from detrlab.data import open_data
from detrlab.evaluation.records import GroundTruth
from detrlab.explain.curves import CURVES_FILE, Curves, EpochCurves
from detrlab.report import gallery
from detrlab.report.page import draw, render, write_page

MODELS = ("detr", "deformable-detr")
HOSTILE = "<img src=x onerror=alert(1)> & \"q\" 'a' {{ 7 * 7 }}"


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    data = write_data(folder / "data", classes=("box", HOSTILE))
    truth = open_data(data).val.coco_ground_truth()
    file = folder / "other.json"
    file.write_text(json.dumps(detections(truth, 0.05)))
    found = compare(
        MODELS,
        recipe=small_recipe(data).change(name="cppe5", assumed=("train.clip",)),
        output=folder / "out",
        seeds=(1, 2),
        predictions=[f"<b>other</b>={file}"],
        trainer=FakeTrainer(truth, {"detr": 0.3, "deformable-detr": 0.1}),
    )
    write_page(found, found.truth, found.data, 3)
    return found


@pytest.fixture(scope="module")
def page(comparison):
    return comparison.report.read_text(encoding="utf-8")


class Elements(HTMLParser):
    """Collects (tag, attributes) and what was opened and never closed."""

    VOID = ("meta", "br", "img", "link", "input", "hr")

    def __init__(self, text):
        super().__init__()
        self.found, self.open, self.wrong = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def test_the_page_is_whole_and_alone(page):
    elements = Elements(page)
    assert not elements.wrong
    assert not elements.open
    tags = [tag for tag, _ in elements.found]
    scripts = [attributes for tag, attributes in elements.found if tag == "script"]
    assert scripts == [{"type": "application/json", "id": "exploration"}, {}]
    assert "link" not in tags
    for tag, attributes in elements.found:
        for name in ("src", "href", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:image/jpeg;base64,")), tag
        assert not any(name.startswith("on") for name in attributes), tag
    ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {a["href"][1:] for _, a in elements.found if a.get("href", "").startswith("#")}
    assert targets <= set(ids)


def test_names_from_the_data_are_text(page):
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert "<b>other</b>" not in page
    assert "{{ 7 * 7 }}" in page, "a template inside a name is not executed"


def test_the_verdict_comes_first(page, comparison):
    places = [page.index(f'id="{name}"') for name in ("verdict", "table", "differences", "images")]
    assert places == sorted(places)
    assert page.index(str(escape(comparison.verdicts.sentences[0]))) < page.index("Tables</h2>")
    assert all(str(escape(sentence)) in page for sentence in comparison.verdicts.sentences)


def test_assumptions_changes_and_unknowns_are_shown(page):
    assert re.search(r"<em>Assumed</em>.*?<code>train\.clip</code>", page, re.DOTALL)
    assert "train.epochs: 50 -&gt; 2" in page
    assert "the same initial backbone weights, by fingerprint" in page
    assert "only their predictions are known" in page


def chart_of(text, title):
    return re.search(rf'<svg [^>]*aria-label="{title}.*?</svg>', text, re.DOTALL)[0]


def test_every_detector_and_every_seed_is_in_the_first_chart(page, comparison):
    chart = chart_of(page, "AP with its 95 % interval; small dots: each seed")
    assert set(re.findall(r'data-series="(\d)"', chart)) == {"0", "1", "2"}
    for row in comparison.rows[:2]:
        assert f"{row.name}: {100 * row.metrics['ap']:.1f} [" in chart


def test_a_detector_has_its_colour_also_where_another_has_no_curve(comparison):
    """And recorded values are the mean over the seeds."""
    first, second = comparison.rows[1].runs
    for run, ap in ((first, 0.2), (second, 0.4)):
        epochs = (EpochCurves(1, (0.1, 0.1), ()), EpochCurves(2, (0.1, ap), (0.5, ap)))
        Curves(epochs).save(comparison.folder / run.folder / CURVES_FILE)
    drawn = draw(comparison)
    for run in (first, second):
        (comparison.folder / run.folder / CURVES_FILE).unlink()
    for name, values in (("layers", [("1", "10"), ("2", "30")]), ("stability", [("2", "30")])):
        svg, numbers = drawn[name]
        assert set(re.findall(r'data-series="(\d)"', svg)) == {"1"}
        assert list(numbers.cells) == values


def test_the_files_beside_the_page_are_its_charts(page, comparison):
    for name, (svg, _) in draw(comparison).items():
        file = comparison.folder / "pictures" / f"{name}.svg"
        assert file.read_text(encoding="utf-8") == svg
    assert chart_of(page, "AP by epoch").count("<path") == svg_of(comparison).count("<path")


def svg_of(comparison):
    return (comparison.folder / "pictures" / "ap-epochs.svg").read_text(encoding="utf-8")


def test_missing_runs_are_named(comparison, page):
    assert "Missing from the results" not in page
    alone = replace(comparison.rows[1], runs=comparison.rows[1].runs[:1])
    text = render(replace(comparison, rows=(comparison.rows[0], alone)), {})
    assert re.search("Missing from the results[^<]*: deformable-detr, seed 2", text)


def test_many_classes_are_the_lines_of_their_table(comparison):
    classes = [f"class {k}" for k in range(30)]
    rows = [replace(row, per_class=dict.fromkeys(classes, 0.5)) for row in comparison.rows]
    text = render(replace(comparison, rows=tuple(rows)), {})
    table = re.search("<caption>AP of each class.*?</table>", text, re.DOTALL)[0]
    assert [f'<th scope="row">{name}</th><td>50.0</td>' in table for name in classes] == [True] * 30


def test_images_are_chosen_without_looking(comparison):
    truth = GroundTruth.from_coco(json.loads((comparison.folder / "ground_truth.json").read_text()))
    chosen = gallery.choose(truth, 3)
    assert chosen == gallery.choose(truth, 6)[:3]
    assert len(set(chosen)) == 3


def test_boxes_are_counted_as_they_are_drawn(comparison):
    data = open_data(comparison.definition.recipe.data.data)
    truth = GroundTruth.from_coco(data.val.coco_ground_truth())
    views = [gallery.view_of(row, truth, comparison.folder) for row in comparison.rows]
    shown = gallery.exhibits(views, truth, data.val, gallery.choose(truth, 6))
    assert [panel.name for panel in shown[0].panels] == ["annotated", *MODELS, "<b>other</b>"]
    for exhibit in shown:
        objects = len(exhibit.panels[0].boxes)
        for panel in exhibit.panels[1:]:
            kinds = [kind for kind, _, _ in panel.boxes]
            assert kinds.count("found") + kinds.count("missed") == objects
            found, missed, false = map(int, re.findall(r"\d+", panel.summary))
            assert (found, missed, false) == tuple(
                kinds.count(kind) for kind in ("found", "missed", "false")
            )
