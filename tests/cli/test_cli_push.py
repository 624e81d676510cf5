"""``detrlab push`` against a local stand-in of the Hub's API."""

import pytest
import yaml
from safetensors import safe_open

import detrlab
from detrlab.checkpoints.weights import fetch_repository
from detrlab.cli import main
from detrlab.data import open_data
from download_server import serving
from hub_server import TOKEN, standing_in


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


def test_a_push_that_was_killed_before_its_commit_is_given_again(hub, checkpoint, capsys):
    hub.repositories["me/tiny"] = {}
    hub.private = False
    command = ["push", str(checkpoint), "me/tiny"]
    assert main([*command, "--private"]) == 2
    assert "exists already and is public" in capsys.readouterr().err.splitlines()[-1]
    assert main(command) == 0
    assert "detrlab.safetensors" in hub.repositories["me/tiny"]


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
