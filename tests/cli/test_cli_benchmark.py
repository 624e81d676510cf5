"""``detrlab benchmark``: what it prints and writes, and how it answers mistakes."""

import json
import sys
from pathlib import Path

import pytest

from detrlab.cli import main
from detrlab.ops import cpu

SMALL = [
    "model.backbone=resnet10t", "model.width=32", "model.num_heads=2", "model.encoder_layers=1",
]  # fmt: skip


def test_backends_are_verified_and_timed(capsys, tmp_path):
    output = tmp_path / "op.json"
    command = ["benchmark", "--op", "--imgsz", "64", "96", "--rounds", "2"]
    code = main([*command, "--output", str(output)])
    printed = capsys.readouterr().out
    report = json.loads(output.read_text())
    assert report["picture"] == [64, 96]
    assert code == int(any("problem" in row for row in report["rows"]))
    assert all(row["backend"] in printed for row in report["rows"])


def test_a_backend_that_is_wrong_is_told(monkeypatch, capsys):
    real = cpu.attend
    monkeypatch.setattr(cpu, "attend", lambda values, *rest: real(values, *rest) * 1.001)
    assert main(["benchmark", "--op", "--imgsz", "64", "--rounds", "1"]) == 1
    assert "not used" in capsys.readouterr().out


def test_a_detector_is_measured(capsys, tmp_path):
    output = tmp_path / "report.json"
    common = ["benchmark", "--model", "deformable-detr", "--imgsz", "64", "96", "--rounds", "1"]
    common += ["--no-memory", "--set", *SMALL]
    assert main([*common, "--batch", "2", "--output", str(output)]) == 0
    assert "deformable-detr (resnet10t), 96 x 64, batch 2" in capsys.readouterr().out
    (report,) = json.loads(output.read_text())
    own = report["libraries"]["detrlab"]
    assert own["inference"]["images_per_second"] > 0
    assert own["training"]["p50_ms"] > own["inference"]["p50_ms"]
    assert main([*common, "--no-train", "--json"]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert set(report["libraries"]["detrlab"]) == {"inference"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model", "dert"], "did you mean 'detr'?"),
        (["--imgsz", "1", "2", "3"], "--imgsz 1 2 3: give a height and a width"),
        (["--batch", "0"], "--batch 0: at least 1"),
        (["--rounds", "0"], "--rounds 0: at least 1"),
        (["--threads", "0"], "--threads 0: at least 1"),
        (["--set", "model.widht=64"], "did you mean 'model.width'?"),
        (["--set", "train.epochs=3"], "train.epochs"),
        (["--device", "cuda"], "only --op"),
        (["--op", "--device", "abacus"], "abacus"),
        (["--op", "--against", "transformers"], "--op"),
        (["--output", __file__], "exists already"),
        (["--against", "original"], "--originals DIR or DETRLAB_ORIGINALS"),
        (["--against", "original", "--originals", "no/such"], "(no/such is none)"),
    ],
)
def test_mistakes_are_one_clear_line(arguments, expected, capsys):
    assert main(["benchmark", *arguments]) == 2
    message = capsys.readouterr().err.strip()
    assert expected in message
    assert len(message.splitlines()) == 1


def test_inference_beside_onnx_runtime(capsys, tmp_path, monkeypatch):
    output = tmp_path / "report.json"
    small = ["--set", *SMALL, "model.decoder_layers=1", "model.num_queries=10"]
    command = ["benchmark", "--model", "deformable-detr", "--imgsz", "64", "96", "--rounds", "1"]
    command += ["--against", "onnxruntime", *small]
    assert main([*command, "--threads", "1", "--output", str(output)]) == 0
    assert "batch 8, 1 threads: PyTorch" in capsys.readouterr().out
    (report,) = json.loads(output.read_text())
    assert [(row["batch"], row["threads"]) for row in report["rows"]] == [(1, 1), (8, 1)]
    assert all(row["times_as_long"]["wall"]["median"] > 0 for row in report["rows"])
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(command) == 2
    assert 'pip install "detrlab[export]"' in capsys.readouterr().err


def test_a_detector_beside_its_authors_code(capsys):
    folder = Path(__file__).resolve().parents[3] / "shared" / "originals"
    if not folder.is_dir():
        pytest.skip("the authors' code does not lie beside the checkout (../shared/originals)")
    command = ["benchmark", "--rounds", "1", "--no-memory", "--json", "--against", "original"]
    command += ["--originals", str(folder), "--model"]
    assert main([*command, "deimv2-atto", "--imgsz", "320"]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert set(report["libraries"]) == {"detrlab", "original"}
    assert set(report["ratios"]) == {"inference", "training"}
    assert main([*command, "deimv2-atto", "--imgsz", "64"]) == 2
    assert "published for, with --imgsz" in capsys.readouterr().err
    assert main([*command, "dab-deformable-detr"]) == 2
    assert "has no 'dab-deformable-detr'" in capsys.readouterr().err
