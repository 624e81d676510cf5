"""The service's answers and refusals, without a network."""

import asyncio
import contextlib
import io
import struct
import tempfile
import zlib

import httpx
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from services import ADDRESS, CLASSES, WaitingDetector, picture_bytes, tiny_detector

from detrlab.presets import FIVE
from detrlab.report.story import looked
from detrlab.serve import app as service
from detrlab.serve.app import create_app
from detrlab.serve.line import Limits

SMALL = Limits(max_bytes=100_000, max_pixels=40_000)


@pytest.fixture(scope="module")
def detector():
    return tiny_detector()


@pytest.fixture(scope="module")
def client(detector):
    with TestClient(create_app(detector, "tiny", SMALL), base_url=ADDRESS) as client:
        yield client


def refused(answer, status, words):
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    sentence = answer.json()["error"]
    assert words in sentence
    assert "\n" not in sentence
    assert "Traceback" not in sentence


# --- answers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "upload",
    [
        lambda data: {"content": data},
        lambda data: {"content": data, "headers": {"content-type": "image/png"}},
        lambda data: {
            "content": data,
            "headers": {"content-type": "application/x-www-form-urlencoded"},
        },
        lambda data: {"files": {"any": ("a.png", data, "image/png")}, "data": {"note": "x"}},
    ],
    ids=["bare", "image", "curl", "form"],
)
def test_it_answers_what_the_detector_says(client, detector, upload):
    data = picture_bytes()
    answer = client.post("/predict?threshold=0.2", **upload(data))
    assert answer.status_code == 200, answer.text
    told = answer.json()
    found = detector.predict(Image.open(io.BytesIO(data)), threshold=0.2)
    assert len(found) > 3
    assert told["size"] == [96, 128]
    assert [each["name"] for each in told["detections"]] == found.names
    assert [each["score"] for each in told["detections"]] == pytest.approx(
        found.scores.tolist(), abs=1e-5
    )
    for each, box in zip(told["detections"], found.boxes.tolist(), strict=True):
        assert each["box"] == pytest.approx(box, abs=0.006)


def test_the_threshold_is_the_detectors_own(client):
    least = client.get("/model").json()["threshold"]
    told = client.post("/predict", content=picture_bytes()).json()
    assert told["threshold"] == least
    assert all(each["score"] >= least for each in told["detections"])


@pytest.mark.parametrize("preset", [*FIVE, "dino-4scale", "d-fine-n"])
def test_it_explains_the_detection_that_it_lists(preset):
    detector = tiny_detector(preset)
    data = picture_bytes()
    with TestClient(create_app(detector, "tiny"), base_url=ADDRESS) as client:
        listed = client.post("/predict?threshold=0", content=data).json()["detections"]
        for number in (0, 5):
            told = client.post(f"/explain?detection={number}", content=data).json()
            assert told["label"] == listed[number]["label"]
            assert told["score"] == pytest.approx(listed[number]["score"], abs=1e-4)
            x, y, w, h = told["path"][-1]["b"]
            assert listed[number]["box"] == pytest.approx([x, y, x + w, y + h], abs=0.2)
            explained = detector.explain(Image.open(io.BytesIO(data)))
            layers = len(explained.recording.decoder)
            expected = [looked(explained.look(told["q"], layer)) for layer in range(layers)]
            assert told["looks"] == expected
            assert len(told["path"]) == layers
        refused(client.post("/explain?detection=1000", content=data), 400, "no detection 1000")


def test_a_turned_photograph_is_upright(client):
    turned = Image.Exif()
    turned[0x0112] = 6
    data = picture_bytes("JPEG", exif=turned)
    assert client.post("/predict", content=data).json()["size"] == [128, 96]


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1)])
def test_thin_pictures(client, size):
    answer = client.post("/predict?threshold=0", content=picture_bytes(size=size))
    assert answer.status_code == 200, answer.text
    assert answer.json()["size"] == [size[1], size[0]]


def test_what_it_says_of_itself(client):
    assert client.get("/health").json() == {"status": "ok"}
    told = client.get("/model").json()
    assert told["model"] == "tiny"
    assert told["classes"] == list(CLASSES)
    assert told["max_bytes"] == SMALL.max_bytes
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {"/health", "/model", "/metrics", "/predict", "/explain"}


def test_a_detector_without_its_network_is_served_too():
    detector = WaitingDetector()
    detector.allowed.set()
    with TestClient(create_app(detector, "exported"), base_url=ADDRESS) as client:
        assert client.get("/model").json()["explains"] is False
        assert client.post("/predict", content=picture_bytes()).json()["detections"] == []
        refused(client.post("/explain", content=picture_bytes()), 404, "POST /explain")


# --- refusals -------------------------------------------------------------------------------


def png_that_says_it_is_large():
    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"x"))


def in_chunks():
    return {"content": iter([b"x" * 60_000] * 2)}


@pytest.mark.parametrize("path", ["/predict", "/explain"])
@pytest.mark.parametrize(
    ("upload", "status", "words"),
    [
        ({"content": b""}, 400, "empty"),
        ({"content": picture_bytes()[:2000]}, 400, "cannot be read"),
        ({"content": picture_bytes("JPEG")[:700]}, 400, "cannot be read"),
        ({"content": b"hello"}, 415, "not a picture of a known format"),
        ({"content": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"}, 415, "known format"),
        ({"json": {"image": "x"}}, 415, "application/json"),
        ({"content": b"x", "headers": {"content-type": "text/html"}}, 415, "text/html"),
        ({"content": b"x" * 100_001}, 413, "100,000 bytes"),
        (in_chunks, 413, "100,000 bytes"),
        ({"content": picture_bytes(size=(256, 160), kind="JPEG")}, 413, "40,000 pixels"),
        ({"content": png_that_says_it_is_large()}, 413, "40,000 pixels"),
        ({"files": [("a", picture_bytes()), ("b", picture_bytes())]}, 400, "files"),
        ({"data": {"a": "b"}, "files": {}}, 415, "known format"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "form"),
        (
            {"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=b"}},
            400,
            "form",
        ),
    ],
)
def test_bad_uploads_are_refused_in_one_sentence(client, path, upload, status, words):
    refused(client.post(path, **(upload() if callable(upload) else upload)), status, words)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/predict?threshold=nan", "threshold"),
        ("/predict?threshold=2", "threshold"),
        ("/predict?threshold=high", "'high'"),
        ("/explain?detection=-1", "detection"),
        ("/explain?detection=0.5", "detection"),
    ],
)
def test_wrong_parameters_are_refused(client, path, words):
    refused(client.post(path, content=picture_bytes()), 400, words)


def test_unknown_paths_and_methods(client):
    refused(client.get("/etc/passwd"), 404, "there is no GET /etc/passwd")
    refused(client.get("/predict"), 405, "GET /predict is not allowed")


def test_a_failure_is_one_sentence_too(monkeypatch, client):
    def fail(*_):
        raise RuntimeError("something private")

    monkeypatch.setattr(service.answers, "detections", fail)
    answer = client.post("/predict", content=picture_bytes())
    refused(answer, 500, "its log says why")
    assert "private" not in answer.text


def test_other_pages_cannot_use_it(client, detector):
    refused(client.get("/model", headers={"host": "evil.example"}), 400, "localhost")
    for name in ("localhost:8000", "127.0.0.1:8000", "[::1]:8000"):
        assert client.get("/model", headers={"host": name}).status_code == 200
    crossing = {"sec-fetch-site": "cross-site"}
    refused(client.post("/predict", content=b"x", headers=crossing), 403, "another web page")
    with TestClient(create_app(detector, "x", opened=True), base_url="http://anywhere") as opened:
        assert opened.get("/model").status_code == 200


def test_every_answer_has_the_security_headers(client):
    for answer in (client.get("/"), client.get("/nothing"), client.post("/predict", content=b"")):
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_page_loads_nothing_from_elsewhere(client):
    for path in ("/", "/page.js", "/page.css"):
        text = client.get(path).text.replace("http://www.w3.org/2000/svg", "")
        assert "//" not in "".join(text.split("://")[1:]), path
        assert "http:" not in text
        assert "https:" not in text.replace("localhost or https.", "")
        assert "innerHTML" not in text


def test_nothing_is_written(monkeypatch, tmp_path):
    """A part above a megabyte would go to a temporary file by default."""

    def fail(*_, **__):
        raise AssertionError("a temporary file")

    monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    monkeypatch.chdir(tmp_path)
    large = picture_bytes("BMP", size=(800, 800))
    assert len(large) > 1 << 20
    with TestClient(create_app(tiny_detector(), "tiny"), base_url=ADDRESS) as roomy:
        for upload in ({"content": large}, {"files": {"image": large}}):
            assert roomy.post("/predict", **upload).status_code == 200
    assert not list(tmp_path.iterdir())


def test_metrics_count_by_fixed_names(client):
    def count(label):
        lines = client.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(label))

    other = 'detrlab_requests_total{path="other",status="404"}'
    fine = 'detrlab_requests_total{path="/predict",status="200"}'
    before = count(other), count(fine)
    client.get("/one"), client.get("/two")
    client.post("/predict", content=picture_bytes())
    assert (count(other), count(fine)) == (before[0] + 2, before[1] + 1)
    assert count('detrlab_detector_seconds_count{path="/predict"}') >= 1
    assert count("detrlab_requests_inside") == 0
    assert "/one" not in client.get("/metrics").text


# --- the line -------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def waiting_service(**limits):
    detector = WaitingDetector()
    app = create_app(detector, "waiting", Limits(**limits))
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url=ADDRESS) as client:
        yield detector, client
    detector.allowed.set()


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


def test_beyond_the_line_429():
    async def play():
        async with waiting_service(waiting=2) as (detector, client):
            ask = [
                asyncio.create_task(client.post("/predict", content=picture_bytes()))
                for _ in range(5)
            ]
            await until(lambda: sum(task.done() for task in ask) == 2)
            # The detector works in its own thread: the service answers meanwhile.
            assert (await client.get("/health")).status_code == 200
            assert "detrlab_requests_inside 3.0" in (await client.get("/metrics")).text
            detector.allowed.set()
            answers = await asyncio.gather(*ask)
            assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 429, 429]
            late = next(answer for answer in answers if answer.status_code == 429)
            refused(late, 429, "3 requests are in the line")
            assert late.headers["retry-after"] == "1"
            assert (await client.post("/predict", content=picture_bytes())).status_code == 200

    asyncio.run(play())


def test_a_slow_answer_503_and_its_place_stays_taken():
    async def play():
        async with waiting_service(waiting=0, seconds=0.3) as (detector, client):
            refused(await client.post("/predict", content=picture_bytes()), 503, "0.3 seconds")
            refused(await client.post("/predict", content=picture_bytes()), 429, "in the line")
            detector.allowed.set()
            async with asyncio.timeout(10):
                while (await client.post("/predict", content=picture_bytes())).status_code == 429:
                    await asyncio.sleep(0.01)

    asyncio.run(play())


def test_who_waits_too_long_leaves_the_line():
    async def play():
        async with waiting_service(waiting=1, seconds=0.3) as (detector, client):
            ask = [client.post("/predict", content=picture_bytes()) for _ in range(2)]
            assert [each.status_code for each in await asyncio.gather(*ask)] == [503, 503]
            detector.started.clear()
            detector.allowed.set()
            await asyncio.sleep(0.3)
            assert not detector.started.is_set()  # the second was never begun

    asyncio.run(play())


def test_a_slow_upload_408():
    async def slowly():
        yield picture_bytes()[:10]
        await asyncio.sleep(5)

    async def play():
        async with waiting_service(seconds=0.2) as (_, client):
            refused(await client.post("/predict", content=slowly()), 408, "0.2 seconds")

    asyncio.run(play())
