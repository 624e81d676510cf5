"""``detrlab push`` against a local stand-in of the Hub's API."""

import base64
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml
from safetensors import safe_open

import detrlab
from detrlab.checkpoints.weights import fetch_repository
from detrlab.cli import main
from detrlab.data import open_data
from download_server import serving

TOKEN = "hf_" + "x" * 34


class Hub(ThreadingHTTPServer):
    """Answers what ``huggingface_hub`` asks when a folder is uploaded."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories = {}  # name: files
        self.tokens = set()
        self.private = None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        hub, body = self.server, self.rfile.read(int(self.headers.get("Content-Length", 0)))
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        hub.tokens.add(token)
        if token != TOKEN:
            return self.answer(401, {"error": "Invalid username or password."})
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            url = {"url": f"{hub.url}/{name}", "name": name}
            hub.private = asked.get("private") or asked.get("visibility") == "private"
            if name in hub.repositories:
                return self.answer(409, {"error": "You already created this model repo", **url})
            hub.repositories[name] = {}
            return self.answer(200, url)
        if self.path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        name = "/".join(self.path.split("/")[3:5])
        if self.path.endswith("/preupload/main"):
            paths = [each["path"] for each in json.loads(body)["files"]]
            modes = [
                {"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths
            ]
            return self.answer(200, {"files": modes})
        if self.path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    hub.repositories[name][value["path"]] = base64.b64decode(value["content"])
            url = f"{hub.url}/{name}/commit/{'c' * 40}"
            return self.answer(200, {"commitUrl": url, "commitOid": "c" * 40, "success": True})
        return self.answer(404, {"error": self.path})

    def do_GET(self):
        return self.answer(200, {"siblings": [], "sha": "c" * 40, "id": "me/x"})

    def answer(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextmanager
def standing_in():
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, args=(0.01,))
    thread.start()
    yield hub
    hub.shutdown()
    thread.join()
    hub.server_close()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    from huggingface_hub import constants

    with standing_in() as server:
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.chdir(tmp_path)
        yield server


SMALL = {
    "backbone": "resnet10t", "backbone_norms": "trained", "width": 32, "num_heads": 2,
    "ffn_width": 32, "encoder_layers": 1, "decoder_layers": 1, "num_queries": 20,
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    detector = detrlab.build("deformable-detr-two-stage", open_data("shapes").val.classes, **SMALL)
    return detector.at_size(64).save(tmp_path_factory.mktemp("weights") / "tiny")


def header_of(text):
    assert text.startswith("---\n")
    return yaml.safe_load(text.split("---\n")[1])


def test_a_folder_is_sent_in_one_commit(hub, checkpoint, capsys):
    (checkpoint.parent / "tiny.certificate.json").write_text("{}")
    command = ["push", str(checkpoint), "me/tiny", "--license", "apache-2.0", "--private"]
    assert main(command) == 0
    told = capsys.readouterr()
    assert told.out.strip().endswith("detrlab predict photo.jpg --model hf:me/tiny")
    assert TOKEN not in told.out + told.err
    files = hub.repositories["me/tiny"]
    assert {"README.md", "detrlab.safetensors", "tiny.certificate.json"} <= files.keys()
    assert files["detrlab.safetensors"] == checkpoint.read_bytes()
    assert hub.tokens == {TOKEN}
    assert hub.private
    header = header_of(files["README.md"].decode())
    assert header["license"] == "apache-2.0"
    assert header["pipeline_tag"] == "object-detection"
    assert b"[tiny.certificate.json](tiny.certificate.json)" in files["README.md"]
    # It is not overwritten unaware.
    assert main(command) == 2
    assert "exists already: --update" in capsys.readouterr().err
    assert main([*command, "--update"]) == 0


def test_without_a_valid_token_one_line_says_so(hub, checkpoint, monkeypatch, capsys):
    secret = "hf_" + "w" * 34
    monkeypatch.setenv("HF_TOKEN", secret)
    assert main(["push", str(checkpoint), "me/tiny"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "log in with 'hf auth login'" in last
    assert "holds everything" in last
    assert secret not in last
    assert not hub.repositories


@pytest.mark.usefixtures("hub")
def test_without_a_network_one_line_says_so(checkpoint, monkeypatch, capsys):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert main(["push", str(checkpoint), "me/tiny"]) == 2
    assert "me/tiny was not sent: " in capsys.readouterr().err.splitlines()[-1]


def test_dry_run_sends_nothing(hub, checkpoint, tmp_path, capsys):
    assert main(["push", str(checkpoint), "me/tiny", "--dry-run", "--output", "folder"]) == 0
    assert "what would be sent to me/tiny" in capsys.readouterr().out
    assert not hub.tokens
    assert detrlab.load(tmp_path / "folder" / "detrlab.safetensors").classes[0] == "disc"


def test_the_card_states_metrics_with_intervals(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["push", str(checkpoint), "me/tiny", "--dry-run", "--data", "shapes"]
    assert main([*command, "--output", "folder", "--device", "cpu"]) == 0
    text = (tmp_path / "folder" / "README.md").read_text()
    metrics = header_of(text)["model-index"][0]["results"][0]["metrics"]
    value = next(each["value"] for each in metrics if each["type"] == "ap50")
    row = next(line for line in text.splitlines() if line.startswith("| AP50 |"))
    told, interval = (cell.strip() for cell in row.split("|")[2:4])
    low, high = map(float, interval.split(" to "))
    assert low <= float(told) <= high
    assert float(told) == pytest.approx(value, abs=6e-4)
    assert "On shapes, val (200 images):" in text


def test_a_detector_that_transformers_holds(tmp_path, monkeypatch):
    from checkpoint_cases import imported

    from detrlab.checkpoints.convert import convert

    convert(imported("detr"), "detrlab", tmp_path / "d.safetensors")
    monkeypatch.chdir(tmp_path)
    assert main(["push", "d.safetensors", "me/pets", "--dry-run", "--output", "folder"]) == 0
    names = {path.name for path in (tmp_path / "folder").iterdir()}
    assert {"config.json", "model.safetensors", "detrlab.safetensors", "README.md"} <= names
    text = (tmp_path / "folder" / "README.md").read_text()
    assert header_of(text)["library_name"] == "transformers"
    assert 'pipeline("object-detection", model="me/pets")' in text


def test_what_was_pushed_is_loaded_by_name(checkpoint, monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with serving() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        server.files["/me/tiny/resolve/main/detrlab.safetensors"] = checkpoint.read_bytes()
        path = fetch_repository("me/tiny")
        assert path.name == "detrlab.safetensors"
        with safe_open(path, "pt") as file:
            assert "detrlab" in file.metadata()
        assert detrlab.load("hf:me/tiny").preprocessing.image_size == 64


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["{checkpoint}", "not a name"], "cannot be the name of a repository"),
        (["none.safetensors", "me/x"], "none.safetensors"),
        (["{checkpoint}", "me/x", "--add", "no.onnx"], "--add no.onnx: there is no such file"),
        (["{checkpoint}", "me/x"], "stay offline"),
    ],
)
def test_mistakes_are_one_clear_line(
    arguments, expected, checkpoint, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETRLAB_OFFLINE", "1")
    filled = [each.format(checkpoint=checkpoint) for each in arguments]
    assert main(["push", *filled]) == 2
    assert expected in capsys.readouterr().err.splitlines()[-1]


def test_names_from_files_stay_text():
    from detrlab.report.card import Card

    card = Card("me/x", "detr", ["a](http://evil)<script>", "b\n# c"], 64, None, {}, None, False)
    assert "<script>" not in card.text().replace("\\<", "")
    assert "\n# c" not in card.text()
