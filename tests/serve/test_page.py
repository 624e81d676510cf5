"""The page of the service in a real browser: everything a person can do with it."""

import io
import shutil
import socket
import threading

import pytest
import uvicorn
from PIL import Image
from services import CLASSES, HOSTILE, picture_bytes, tiny_detector

from detrlab.serve.app import create_app
from detrlab.serve.line import Limits

pytestmark = pytest.mark.browser
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("there is no Chromium")
    camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with playwright.sync_playwright() as engine:
        launched = engine.chromium.launch(executable_path=path, args=["--no-sandbox", *camera])
        yield launched
        launched.close()


def serving(detector):
    """The address of a service in a thread; it ends with the test."""
    app = create_app(detector, HOSTILE, Limits(max_bytes=3_000_000))
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    server.should_exit = True
    thread.join(20)


@pytest.fixture(scope="module")
def address():
    yield from serving(tiny_detector())


@pytest.fixture(scope="module")
def dense_address():
    yield from serving(tiny_detector("detr"))


def opened(browser, address, **options):
    """The page; whatever the console says, a broken policy too, is collected in ``said``."""
    page = browser.new_context(**options).new_page()
    page.said = []
    page.on("console", lambda message: page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.goto(address)
    page.wait_for_selector("#command:not(:empty)", state="attached")
    return page


@pytest.fixture
def page(browser, address):
    page = opened(browser, address, viewport={"width": 1200, "height": 900})
    yield page
    assert page.said == []
    assert page.evaluate("window.hacked") is None
    page.context.close()


def give(page, data=None, name="a.png"):
    file = {"name": name, "mimeType": "image/png", "buffer": data or picture_bytes()}
    page.set_input_files("#file", file)


def given(page, data=None):
    give(page, data)
    page.wait_for_selector("#boxes .pick")


def set_threshold(page, value):
    page.locator("#cut").evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }",
        str(value),
    )


def test_names_are_text(page):
    given(page)
    set_threshold(page, 0.02)
    assert page.locator("#name").text_content() == HOSTILE
    assert HOSTILE in page.locator("#about").text_content()
    assert set(page.locator("#list .word").all_text_contents()) == set(CLASSES)
    assert page.locator("img, i").count() == 0


def test_the_threshold_filters_boxes_and_list(page):
    given(page)
    counts = []
    for value in (0.02, 0.5, 0.9, 0.98):
        set_threshold(page, value)
        counts.append(page.locator("#list button").count())
        assert page.locator("#boxes .pick").count() == counts[-1]
        scores = page.locator("#list output").all_text_contents()
        assert all(float(score) >= value - 0.005 for score in scores)
        assert page.locator("#told").text_content().startswith(f"{counts[-1]} object")
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]


def test_a_click_shows_where_the_query_looked(page):
    given(page)
    page.locator("#list button").first.click()
    page.wait_for_selector("#views .panel")
    assert "layer by layer" in page.locator("#asked").text_content()
    assert page.locator("#views .panel").count() == 3
    for panel in page.locator("#views .panel").all():
        assert panel.locator(".sample").count() > 10
        assert panel.locator(".step.now").count() == 1
        assert panel.locator(".step.reference").count() == 1
        assert panel.locator("image").get_attribute("href").startswith("blob:")
    assert page.locator("#boxes .pick.chosen").count() == 1
    page.keyboard.press("Escape")
    assert not page.locator("#query").is_visible()


def test_dense_attention_is_a_map(browser, dense_address):
    page = opened(browser, dense_address)
    given(page)
    page.locator("#list button").first.click()
    page.wait_for_selector("#views .panel")
    assert page.locator("#views .panel").first.locator(".cell").count() > 3
    assert page.locator("#views .sample").count() == 0
    assert page.said == []
    page.context.close()


def test_boxes_can_be_reached_by_keyboard(page):
    given(page)
    page.locator("#boxes .pick").last.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#views .panel")
    assert page.evaluate("document.activeElement.classList.contains('pick')")


def test_a_drop_and_a_turned_photograph(page):
    turned = Image.Exif()
    turned[0x0112] = 6
    data = list(picture_bytes("JPEG", exif=turned))
    page.evaluate(
        """data => {
            const carried = new DataTransfer();
            carried.items.add(new File([new Uint8Array(data)], "a.jpg", { type: "image/jpeg" }));
            document.dispatchEvent(new DragEvent("drop", { dataTransfer: carried, bubbles: true }));
        }""",
        data,
    )
    page.wait_for_selector("#boxes .pick")
    assert page.locator("#boxes").get_attribute("viewBox") == "0 0 96 128"
    assert page.evaluate("[picture.width, picture.height]") == [96, 128]


def test_the_camera_runs_until_it_is_frozen(page):
    page.locator("#camera").click()
    page.wait_for_selector("#boxes .pick", timeout=15_000)
    assert page.locator("#camera").text_content() == "Freeze the picture"
    page.locator("#camera").click()
    assert page.locator("#camera").text_content() == "Use the camera"
    page.locator("#list button").first.click()
    page.wait_for_selector("#views .panel")


def test_a_format_that_browsers_do_not_show(page):
    stream = io.BytesIO()
    Image.open(io.BytesIO(picture_bytes())).save(stream, "TIFF")
    given(page, stream.getvalue())
    assert "cannot show the picture" in page.locator("#told").text_content()


def test_what_is_refused_is_said(browser, address):
    page = opened(browser, address)
    give(page, b"not a picture")
    page.wait_for_selector("#told.wrong")
    assert "not a picture of a known format" in page.locator("#told").text_content()
    give(page, b"x" * 3_000_001, "large.png")
    page.get_by_text("large.png has 3.0 MB").wait_for()
    given(page)  # a good one afterwards
    assert page.locator("#told.wrong").count() == 0
    page.context.close()


def test_it_fits_a_telephone_in_the_dark(browser, address):
    page = opened(browser, address, viewport={"width": 360, "height": 700}, color_scheme="dark")
    given(page)
    page.locator("#list button").first.click()
    page.wait_for_selector("#views .panel")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert colour == "rgb(22, 24, 27)"
    page.context.close()
