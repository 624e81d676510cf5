"""The page in a real browser: everything a person can do with it, without a network."""

import json
import re
import shutil

import pytest
import torch

from compare_cases import FakeTrainer, detections, small_recipe, write_data
from detrlab.checkpoints import native
from detrlab.compare import compare
from detrlab.data import open_data
from detrlab.presets import build_network
from detrlab.report.page import write_page

pytestmark = pytest.mark.browser
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

HOSTILE = "</script><img src=x onerror=window.hacked=1> & \"q\" 'a'"
MODELS = ("detr", "deformable-detr-two-stage")
OTHER = "<i>other</i>"


class TrainerWithWeights(FakeTrainer):
    """Leaves weights too, of networks that claim something everywhere."""

    def __call__(self, run, report):
        network = build_network(run.model, seed=run.seed)
        generator = torch.Generator().manual_seed(run.seed)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if name.startswith(("decoder", "queries", "encoder")) and "norm" not in name:
                    parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
            for head in network.decoder.heads:
                head.classes.bias[:2] += 4.0
        path = run.folder / "weights" / "last.safetensors"
        path.parent.mkdir(parents=True)
        native.save(path, network, run.model, ("box", HOSTILE), (1, 2), run.data)
        return super().__call__(run, report)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    data = write_data(folder / "data", classes=("box", HOSTILE))
    truth = open_data(data).val.coco_ground_truth()
    file = folder / "other.json"
    file.write_text(json.dumps(detections(truth, 0.05)))
    found = compare(
        MODELS,
        recipe=small_recipe(data),
        output=folder / "out",
        predictions=[f"{OTHER}={file}"],
        trainer=TrainerWithWeights(truth, dict(zip(MODELS, (0.3, 0.1), strict=True))),
    )
    write_page(found, found.truth, found.data, 3)
    return found.report


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("there is no Chromium")
    with playwright.sync_playwright() as engine:
        launched = engine.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        launched.close()


def opened(browser, report, **options):
    """The page, offline; whatever the console or the network says is collected in ``said``."""
    context = browser.new_context(offline=True, **options)
    page = context.new_page()
    page.said = []
    page.on("console", lambda message: page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.on("requestfailed", lambda request: page.said.append(request.url))
    page.goto(report.resolve().as_uri())
    return page


@pytest.fixture
def page(browser, report):
    page = opened(browser, report, viewport={"width": 1200, "height": 900})
    yield page
    assert page.said == []
    assert page.evaluate("window.hacked") is None
    page.context.close()


@pytest.fixture(scope="module")
def data(report):
    text = report.read_text(encoding="utf-8")
    held = re.search(r'<script type="application/json" id="exploration">(.*?)</script>', text)
    return json.loads(held[1])


def model_view(page, index):
    return page.locator(f'#views .panel[data-model="{index}"]')


def set_slider(page, value):
    page.locator("#cut").evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }",
        str(value),
    )


def test_hostile_names_are_text(page, data):
    assert data["classes"] == ["box", HOSTILE]
    assert page.locator("#views .panel strong").all_text_contents() == ["annotated", *MODELS, OTHER]
    assert page.locator("main img, main i, #views img").count() == 0
    labels = page.locator("#views .pick title").all_text_contents()
    assert any(HOSTILE in label for label in labels)
    assert page.locator("#data th", has_text=HOSTILE).count() >= 1


def test_the_slider_moves_the_boxes(page, data):
    for cut in (0.1, 0.5, 0.9):
        set_slider(page, cut)
        for index, model in enumerate(data["images"][0]["models"]):
            expected = sum(box["s"] >= cut for box in model["boxes"])
            drawn = model_view(page, index).locator(".pick:not(.missed)").count()
            assert drawn == expected, (cut, index)
    assert not page.locator("#at-best").is_checked()
    assert page.locator("#cut-value").text_content() == "0.90"


def test_at_their_best_the_counts_are_those_of_the_static_page(page, data):
    """For another tool's predictions the script judges what Python judged before it."""
    static = page.locator("#exhibits .exhibit")
    for number in range(len(data["images"])):
        summary = static.nth(number).locator(".panel p span").nth(3).text_content()
        assert model_view(page, 2).locator("p span").text_content() == summary
        page.locator("#next").click()


def test_images_and_models_are_switched(page, data):
    assert page.locator("#views use").first.get_attribute("href") == "#picture-1"
    page.locator("#next").click()
    assert page.locator("#views use").first.get_attribute("href") == "#picture-2"
    page.locator("#pick-image").select_option(index=2)
    assert page.locator("#views use").first.get_attribute("href") == "#picture-3"
    page.locator("#next").click()
    assert page.locator("#views use").first.get_attribute("href") == "#picture-1"
    page.locator("#previous").click()
    assert page.locator("#pick-image").input_value() == str(len(data["images"]) - 1)
    page.get_by_label(MODELS[0], exact=True).uncheck()
    assert page.locator("#views .panel strong").all_text_contents() == [
        "annotated",
        MODELS[1],
        OTHER,
    ]
    page.get_by_label("annotations").uncheck()
    assert page.locator("#views .truth, #views .missed").count() == 0


def test_a_chosen_box_shows_where_it_looked(page, data):
    set_slider(page, 0.02)
    boxes = data["images"][0]["models"][1]["boxes"]
    page.locator("#views .panel").nth(2).locator(".pick").last.dispatch_event("click")
    view = model_view(page, 1)
    best = boxes[0]
    assert view.locator(".sample").count() == len(best["points"]) / 4
    assert view.locator(".step:not(.reference)").count() == len(best["path"])
    drawn = view.locator(".step:not(.reference)").last
    for name, value in zip(("x", "y", "width", "height"), best["path"][-1]["b"], strict=True):
        assert float(drawn.get_attribute(name)) == value
    assert best["path"][-1]["b"] == best["b"]
    # In dense attention, a map of cells.
    cells = model_view(page, 0).locator(".cell").count()
    assert cells == 0 or cells <= max(
        len(box["map"]["weights"]) for box in data["images"][0]["models"][0]["boxes"][:20]
    )
    cards = page.locator("#views .card")
    assert page.locator("#views .panel:has(.card) strong").all_text_contents() == [*MODELS, OTHER]
    scores = cards.nth(1).locator("tbody tr td:nth-child(2)").all_text_contents()
    assert scores == [f"{step['s']:.2f}" for step in best["path"]]
    assert "Only the detections of this detector are known" in cards.nth(2).text_content()
    page.keyboard.press("Escape")
    page.locator("#detail button").click()
    assert page.locator("#views .looks").count() == 0


def test_an_annotated_object_says_why(page, data):
    page.locator("#views .panel").first.locator(".pick").first.dispatch_event("click")
    words = data["images"][0]["models"][0]["why"][0]["words"]
    assert words in page.locator("#views .card").first.text_content()
    assert model_view(page, 0).locator(".cell").count() > 0
    assert model_view(page, 1).locator(".sample").count() > 0


def test_the_table_sorts(page):
    table = page.locator("#table table").first
    column = table.locator("thead th").nth(1)
    values = lambda: [  # noqa: E731
        float(cell) for cell in table.locator("tbody tr td:nth-child(2)").all_text_contents()
    ]
    before = values()
    column.locator("button").click()
    assert column.get_attribute("aria-sort") == "descending"
    assert values() == sorted(before, reverse=True)
    column.locator("button").click()
    assert values() == sorted(before)
    column.locator("button").click()
    assert column.get_attribute("aria-sort") is None
    assert values() == before


def test_the_keyboard_is_enough(page):
    page.locator("#zoom-in").focus()
    page.keyboard.press("Tab")  # the first detector's checkbox
    page.keyboard.press("Space")
    assert page.locator("#views .panel").count() == 3
    page.keyboard.press("Space")
    for _ in range(3):
        page.keyboard.press("Tab")
    first = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert first.startswith("annotated")
    page.keyboard.press("Enter")
    assert page.locator("#detail h3").text_content().startswith("Selected: annotated")
    assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"
    page.keyboard.press("Escape")
    assert page.locator("#detail h3").count() == 0


def test_every_control_has_a_name(page):
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll('button, input, select, [role=button], svg.view')]
            .filter((e) => !(e.getAttribute('aria-label') || e.textContent.trim()
                || (e.labels && e.labels.length)))
            .map((e) => e.outerHTML.slice(0, 80))"""
    )
    assert unnamed == []


def test_marks_say_their_numbers(page):
    """The browser shows the title of what is under the pointer."""
    mark = page.locator("#curves svg.chart").first.locator("use:has(title)").last
    mark.evaluate("mark => mark.scrollIntoView({ block: 'center' })")
    box = mark.bounding_box()
    under = page.evaluate(
        "([x, y]) => document.elementFromPoint(x, y).querySelector('title').textContent",
        [box["x"] + box["width"] / 2, box["y"] + box["height"] / 2],
    )
    assert re.fullmatch(rf"({'|'.join(MODELS)}): [\d.]+ at epoch 3", under)


def test_the_legend_hides_a_detector_in_all_charts(page):
    marks = page.locator('.chart [data-series="1"] use')
    assert all(mark.is_visible() for mark in marks.all())
    button = page.locator(".legend button").nth(1)
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert not any(mark.is_visible() for mark in marks.all())
    assert page.locator('.chart [data-series="0"] use').first.is_visible()
    button.click()
    assert marks.first.is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_can_be_read_everywhere(browser, report, scheme, width):
    page = opened(browser, report, color_scheme=scheme, viewport={"width": width, "height": 800})
    page.locator("#views .panel").first.locator(".pick").first.dispatch_event("click")
    # Nothing makes the page itself scroll sideways.
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    contrast = page.evaluate(CONTRAST)
    assert contrast >= 4.5, contrast
    assert page.said == []
    page.context.close()


CONTRAST = """() => {
  const TEXTS = 'p, li, td, th, a, summary, label, legend, h1, h2, h3';
  const light = (text) => {
    const [r, g, b] = text.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
      .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if (!/rgba\\(.*, 0\\)/.test(colour)) return colour;
    }
    return getComputedStyle(document.body).backgroundColor;
  };
  let least = 21;
  for (const e of document.querySelectorAll(TEXTS)) {
    if (!e.offsetParent || !e.textContent.trim()) continue;
    const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x);
    least = Math.min(least, (a + 0.05) / (b + 0.05));
  }
  return least;
}"""


def test_printed_it_shows_all_images(page, data):
    page.emulate_media(media="print")
    assert not page.locator("#explorer").is_visible()
    assert page.locator("#exhibits .exhibit").count() == len(data["images"])
    assert page.locator("#exhibits .exhibit").first.is_visible()


def test_without_scripts_it_is_whole(browser, report):
    page = opened(browser, report, java_script_enabled=False)
    assert not page.locator("#explorer").is_visible()
    assert page.locator("#exhibits .exhibit").first.is_visible()
    page.context.close()
