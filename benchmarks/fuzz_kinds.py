"""What is mutated, and how it is used afterwards: the kinds of files that come from anybody."""

from __future__ import annotations

import asyncio
import functools
import gzip
import io
import json
import os
import re
import socket
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path += [
    str(TESTS / room) for room in ("", "checkpoints", "data", "explain", "export", "serve")
]

from detrlab.errors import UserError  # noqa: E402

TRAIN, VAL = 12, 3
SIDES = 20, 30
"""Height and width of the pictures."""


class Kind(NamedTuple):
    """One kind of input.

    Attributes:
        build: writes valid files into a folder.
        forms: how each of the files is mutated, by its name.
        use: (folder, mutated file, folder for output) -> what was told about it beside the result.
        weight: of its inputs among all.
    """

    build: Callable[[Path], None]
    forms: dict[str, str]
    use: Callable[[Path, Path, Path], list[str]]
    weight: float = 1.0


# Data sets ---------------------------------------------------------------------------------------


def picture(number: int) -> Image.Image:
    coarse = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(SIDES[::-1], Image.Resampling.BICUBIC)


def draw_pictures(folder: Path, count: int, first: int = 0, ending: str = "png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + count):
        picture(i).save(folder / f"p{i}.{ending}")


def document(count: int, first: int = 0) -> dict[str, Any]:
    """COCO's format: one or two objects in each image."""
    numbers = range(first, first + count)
    return {
        "info": {"year": 2024, "description": "made"},
        "licenses": [{"id": 1, "name": "CC0", "url": "https://example.org"}],
        "images": [
            {"id": i, "file_name": f"p{i}.png", "height": SIDES[0], "width": SIDES[1]}
            for i in numbers
        ],
        "annotations": [
            {"id": 2 * i + k, "image_id": i, "category_id": 1 + k, "bbox": [2 + k, 3, 10, 9.5],
             "area": 95.0, "iscrowd": 0, "segmentation": []}
            for i in numbers for k in range(1 + i % 2)
        ],
        "categories": [{"id": 1, "name": "a", "supercategory": "x"}, {"id": 2, "name": "b"}],
    }  # fmt: skip


def coco(folder: Path) -> None:
    draw_pictures(folder / "images", TRAIN + VAL)
    (folder / "images" / "link.png").symlink_to("../../outside/secret.png")
    (folder / "train.json").write_text(json.dumps(document(TRAIN)))
    (folder / "val.json").write_text(json.dumps(document(VAL, TRAIN)))


def roboflow(folder: Path) -> None:
    for split, count, first in (("train", TRAIN, 0), ("valid", VAL, TRAIN)):
        draw_pictures(folder / split, count, first)
        text = json.dumps(document(count, first))
        (folder / split / "_annotations.coco.json").write_text(text)


def yolo(folder: Path) -> None:
    for split, count, first in (("train", TRAIN, 0), ("val", VAL, TRAIN)):
        draw_pictures(folder / "images" / split, count, first)
        (folder / "labels" / split).mkdir(parents=True)
        for i in range(first, first + count):
            lines = "0 0.5 0.5 0.25 0.25\n1 0.2 0.2 0.1 0.1 0.3 0.1 0.3 0.3\n"
            (folder / "labels" / split / f"p{i}.txt").write_text(lines)
    (folder / "data.yaml").write_text(
        "path: .\ntrain: images/train\nval: [images/val]\nnames: {0: a, 1: b}\nnc: 2\n"
    )


PAGE = """<annotation><folder>x</folder><filename>{file}</filename>
<size><width>30</width><height>20</height><depth>3</depth></size>
<object><name>a</name><pose>Left</pose><truncated>0</truncated><difficult>0</difficult>
<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>12</xmax><ymax>11</ymax></bndbox></object>
<object><name>b</name><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>20</xmax><ymax>18</ymax></bndbox>
</object></annotation>"""


def voc(folder: Path) -> None:
    draw_pictures(folder / "JPEGImages", TRAIN + VAL, ending="jpg")
    stems = [f"p{i}" for i in range(TRAIN + VAL)]
    (folder / "Annotations").mkdir()
    for stem in stems:
        (folder / "Annotations" / f"{stem}.xml").write_text(PAGE.format(file=f"{stem}.jpg"))
    lists = folder / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("\n".join(stems[:TRAIN]))
    (lists / "val.txt").write_text("\n".join(stems[TRAIN:]))


def rows(count: int, first: int) -> list[dict[str, Any]]:
    """As on the Hugging Face Hub."""
    return [
        {"file_name": f"p{i}.png",
         "objects": {"bbox": [[2.0, 3.0, 10.0, 9.0], [5.0, 5.0, 8.0, 8.0]], "category": [0, 1]}}
        for i in range(first, first + count)
    ]  # fmt: skip


def columns(folder: Path) -> None:
    for split, count, first in (("train", TRAIN, 0), ("validation", VAL, TRAIN)):
        draw_pictures(folder / split, count, first)
        lines = "\n".join(map(json.dumps, rows(count, first)))
        (folder / split / "metadata.jsonl").write_text(lines)


def parquet(folder: Path) -> None:
    import datasets

    folder.mkdir(exist_ok=True)
    listed = rows(TRAIN, 0)
    for i, row in enumerate(listed):
        stream = io.BytesIO()
        picture(i).save(stream, "PNG")
        row["image"] = {"bytes": stream.getvalue(), "path": row.pop("file_name")}
    split = datasets.Dataset.from_list(listed).cast_column("image", datasets.Image(decode=False))
    split.to_parquet(folder / "train.parquet")


def archived(folder: Path) -> None:
    inner = folder / "inner"
    inner.mkdir()
    coco(inner)
    with zipfile.ZipFile(folder / "data.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(
            each for each in inner.rglob("*") if each.is_file() and not each.is_symlink()
        ):
            archive.writestr(
                zipfile.ZipInfo(path.relative_to(inner).as_posix()), path.read_bytes(), 8
            )


def use_data(source: str | Path) -> list[str]:
    """As training and ``check`` use a data set; notes, and findings with their counts."""
    from detrlab.data import open_data
    from detrlab.data.check import check

    notes, refusal = [], None
    try:
        data = open_data(source)
        for table in (data.train, data.val):
            for i in range(len(table)):
                sample = table.read(i)
                assert sample.boxes.isfinite().all(), "a box that is not finite"
        json.dumps(data.val.coco_ground_truth(), allow_nan=False)
        notes = list(data.notes)
    except UserError as error:
        refusal = error
    with suppress(UserError):  # check may say more, and must survive what training refuses
        report = check(source)
        json.dumps(report.to_dict(), allow_nan=False)
        lines = report.lines()
        assert all(map(str.isprintable, lines)), "a line that holds control characters"
        assert sum(map(len, lines)) < 100_000, "a report that is too long"
        notes += [f"{rule.title} ({count})" for rule, count, _ in report.findings.by_rule()]
    if refusal is not None:
        raise refusal
    return notes


def use_folder(folder: Path, _file: Path, _out: Path) -> list[str]:
    return use_data(folder)


def use_file(_folder: Path, file: Path, _out: Path) -> list[str]:
    return use_data(file)


def tar(folder: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        text = json.dumps(document(2)).encode()
        for name, data in (("annotations/train.json", text), ("images/p0.png", bytes(900))):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    (folder / "dataset.tar.gz").write_bytes(gzip.compress(stream.getvalue(), mtime=0))


def use_tar(_folder: Path, file: Path, out: Path) -> list[str]:
    from detrlab import files
    from detrlab.data.datasets import _unpack

    copy = out / file.name  # a damaged archive is deleted, so that it is downloaded again
    copy.write_bytes(file.read_bytes())
    try:
        _unpack(copy, out / "data", 1 << 20)
    except OSError as error:  # as what calls it does
        raise files.explain(error, copy) from error
    return []


PICTURES = {
    "PNG": "png", "JPEG": "jpg", "GIF": "gif", "WEBP": "webp", "TIFF": "tif", "BMP": "bmp",
    "PPM": "ppm",
}  # fmt: skip
"""Formats, and how their files end."""


def images(folder: Path) -> None:
    for kind, ending in PICTURES.items():
        picture(1).save(folder / f"a.{ending}", kind)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(2).convert("CMYK").save(folder / "b.jpg", exif=exif)
    picture(3).convert("P").save(folder / "b.png", transparency=0)


def use_image(_folder: Path, file: Path, _out: Path) -> list[str]:
    from detrlab.data.images import inspect
    from detrlab.images import read_picture

    look = inspect(file.read_bytes(), str(file), 16)
    assert read_picture(file).dtype == torch.uint8
    return [look.problem] if look.problem else []


# Weights and exported files ----------------------------------------------------------------------


def weights(folder: Path) -> None:
    from checkpoint_cases import FIVE_CLASSES, OWN, strong_state, write_hub_folder
    from safetensors.torch import save_file

    from detrlab.checkpoints import native, official
    from detrlab.checkpoints.rules import export
    from tiny_detectors import tiny_config

    for name in ("detr", "deformable-detr-two-stage"):
        config = _small(tiny_config(name))
        state = strong_state(config)
        native.save(folder / f"{name}.safetensors", state, config, FIVE_CLASSES, range(5), OWN)
    config = _small(tiny_config("detr"))
    state = strong_state(config)
    tensors = export(state, official.layout(config), one_name_each=True)
    save_file({n: each.clone() for n, each in tensors.items()}, folder / "official.safetensors")
    hub = write_hub_folder(folder / "hub", config, state)
    settings = {"size": {"shortest_edge": 96, "longest_edge": 128}, "image_mean": [0.4, 0.4, 0.4]}
    (hub / "preprocessor_config.json").write_text(json.dumps(settings))


def _small(config: Any) -> Any:
    return config.change(encoder_layers=1, decoder_layers=2, width=32, ffn_width=32, num_queries=8)


def pickles(folder: Path) -> None:
    from checkpoint_cases import strong_state, write_official

    from tiny_detectors import tiny_config

    config = _small(tiny_config("detr"))
    state = strong_state(config)
    write_official(folder / "new.pth", config, state)
    write_official(folder / "old.pth", config, state, legacy=True)


def use_weights(_folder: Path, file: Path, _out: Path) -> list[str]:
    """As ``detrlab predict --model`` uses them; a folder of transformers by its folder."""
    import detrlab
    from tiny_detectors import tiny_resnet

    source = file.parent if file.parent.name == "hub" else file
    backbone = tiny_resnet() if file.suffix == ".pth" or "official" in file.name else None
    detector = detrlab.load(source, backbone=backbone)
    detector.predict(np.zeros((64, 64, 3), np.uint8), keep_image=False)
    return []


def graphs(folder: Path) -> None:
    from onnx_files import constant_file, detr_line, rf_detr, yolo

    from detrlab.export.sessions import KEY

    line = {KEY: json.dumps({"layout": "detections", "classes": ["a", "b", "c"], "size": [64, 96]})}
    detr_line(folder / "own.onnx", metadata=line)
    detr_line(folder / "detr.onnx")
    rf_detr(folder / "rf.onnx", np.zeros((1, 5, 91), np.float32), np.ones((1, 5, 4), np.float32))
    yolo(folder / "yolo.onnx", np.ones((1, 7, 8), np.float32), metadata={"names": "['a','b','c']"})
    constant_file(folder / "plain.onnx", {"output0": np.ones((1, 7, 8), np.float32)})
    (folder / "plain.yaml").write_text(
        "layout: yolo\nclasses: [a, b, c]\nsize: [64, 96]\nmean: [0.5, 0.5, 0.5]\nrange: 255\n"
        "threshold: 0.3\nrename: {a: b}\n"
    )


def use_graph(_folder: Path, file: Path, _out: Path) -> list[str]:
    from detrlab.export import load

    detector = load(file.with_suffix(".onnx"), threads=1)
    detector.predict(np.zeros((48, 64, 3), np.uint8), keep_image=False)
    return list(detector.notes)


# Settings, runs, predictions ---------------------------------------------------------------------


def recipes(folder: Path) -> None:
    from detrlab.recipes import RECIPES

    for name in ("tiny", "photos", "paper"):
        RECIPES[name].save(folder / f"{name}.yaml")


def use_recipe(_folder: Path, file: Path, _out: Path) -> list[str]:
    """As ``detrlab train --recipe FILE`` up to the first step: settings, network, optimiser."""
    from detrlab.checkpoints.freeze import freeze
    from detrlab.cli.settings import RecipeOptions
    from detrlab.compare.entrants import named
    from detrlab.training.optim import parameter_groups

    recipe = RecipeOptions(recipe=str(file)).settled()
    for entrant in named(("detr", "deformable-detr-two-stage")):
        _, train, _ = entrant.configs(recipe, 2)
        network = _network(entrant.name)
        if train.freeze:
            freeze(network, train.freeze)
        parameter_groups(network, train)
    return []


@functools.cache
def _network(name: str) -> Any:
    from detrlab.presets import build_network
    from tiny_detectors import tiny_config

    return build_network(tiny_config(name))


def settings(folder: Path) -> None:
    """YAML of every other kind: of a data set, of a run, beside an exported file."""
    yolo(folder / "data")
    graphs(folder)
    (folder / "run").mkdir()
    run_config().save(folder / "run" / "config.yaml")


def run_config() -> Any:
    from detrlab.config import DataConfig, TrainConfig
    from detrlab.training.folder import RunConfig
    from tiny_detectors import tiny_config

    return RunConfig(model=tiny_config("detr"), train=TrainConfig(), data=DataConfig())


def use_settings(folder: Path, file: Path, out: Path) -> list[str]:
    from detrlab.training.folder import RunConfig

    if file.name == "config.yaml":
        RunConfig.load(file)
        return []
    return use_data(folder / "data") if file.name == "data.yaml" else use_graph(folder, file, out)


def runs(folder: Path) -> None:
    """A finished comparison with another tool's predictions, and a training that was stopped."""
    from compare_cases import FakeTrainer, detections, small_recipe, write_data
    from detrlab.compare import compare
    from detrlab.data import open_data
    from detrlab.training import state

    data = write_data(folder / "data", train=4, val=3)
    truth = open_data(data).val.coco_ground_truth()
    (folder / "other.json").write_text(json.dumps(detections(truth, 0.1)))
    models = ("detr", "deformable-detr")
    compare(
        models, recipe=small_recipe(data), output=folder / "compared",
        trainer=FakeTrainer(truth, dict.fromkeys(models, 0.1)),
        predictions=[f"other={folder / 'other.json'}"],
    )  # fmt: skip
    for path in (folder / "compared" / "runs").iterdir():
        path.rename(path.with_name("run-" + path.name.rpartition("-seed")[0]))
    trained = folder / "trained"
    trained.mkdir()
    run_config().save(trained / "config.yaml")
    (trained / "metrics.json").write_text(json.dumps({"epochs": [{"epoch": 1, "ap": 0.1}]}))
    engine = _engine()
    state.save(trained, engine, state.Progress(step=1, sums={"loss": 1.0}), {"data": "x"})
    next(trained.glob("step-*")).rename(trained / "state.safetensors")


@functools.cache
def _engine() -> Any:
    from detrlab.training.distributed import Processes
    from detrlab.training.setup import build_engine

    return build_engine(_network("detr"), run_config(), 10, Processes(torch.device("cpu")))


def use_run(folder: Path, file: Path, out: Path) -> list[str]:
    """As ``compare --collect`` of a stranger's folder, and ``train --resume`` of one."""
    from detrlab import files
    from detrlab.compare import collect
    from detrlab.report.page import write_page
    from detrlab.training import state
    from detrlab.training.folder import RunConfig, RunFolder

    said: list[str] = []
    if file.parent.name == "trained":
        RunConfig.load(folder / "trained" / "config.yaml")
        RunFolder(folder / "trained").read_metrics()
        data = (folder / "trained" / "state.safetensors").read_bytes()
        # A stranger gives the file the name that its contents ask for.
        name = f"step-00000001-epoch-0000-{files.digest(data)[:16]}.safetensors"
        (out / name).write_bytes(data)
        saved = state.load_latest(out)
        assert saved is not None
        state.restore(saved, _engine())
        return said
    found = collect(out, [folder / "compared"], report=said.append)
    write_page(found, found.truth, found.data, pictures=2)
    for grid in found.grids:
        grid.markdown()
    return [line for line in said if "collecting" not in line and "judging" not in line]


def predictions(folder: Path) -> None:
    from compare_cases import detections

    truth = document(6)
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "found.json").write_text(json.dumps(detections(truth, 0.1)))


def use_predictions(folder: Path, file: Path, _out: Path) -> list[str]:
    from detrlab.evaluation.analysis import analyse
    from detrlab.evaluation.coco import accumulate
    from detrlab.evaluation.foreign import load_predictions
    from detrlab.evaluation.records import GroundTruth

    truth = GroundTruth.from_coco(json.loads((folder / "truth.json").read_bytes()))
    loaded = load_predictions(file, truth)
    metrics = accumulate(truth, loaded.detected).metrics(truth.classes).to_dict()
    json.dumps(metrics, allow_nan=False)
    json.dumps(analyse(truth, loaded.detected).to_dict(), allow_nan=False)
    return list(loaded.notes)


# Requests ----------------------------------------------------------------------------------------


def requests(folder: Path) -> None:
    stream = io.BytesIO()
    picture(1).save(stream, "PNG")
    png = stream.getvalue()
    form = (b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n'
            b"Content-Type: image/png\r\n\r\n" + png + b"\r\n--b--\r\n")  # fmt: skip
    for name, line, kind, body in (
        ("raw", "POST /predict?threshold=0.2", "image/png", png),
        ("form", "POST /predict", "multipart/form-data; boundary=b", form),
        ("explain", "POST /explain?detection=0", "application/octet-stream", png),
        ("page", "GET /", "text/plain", b""),
        ("model", "GET /model", "text/plain", b""),
        ("metrics", "GET /metrics", "text/plain", b""),
    ):
        head = (f"{line} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
                f"content-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n")  # fmt: skip
        (folder / f"{name}.http").write_bytes(head.encode() + body)


@functools.cache
def _service() -> int:
    """Serve a tiny detector from a thread; returns the port."""
    import logging

    import uvicorn
    from services import tiny_detector

    from detrlab.serve.app import create_app
    from detrlab.serve.line import Limits

    limits = Limits(max_bytes=100_000, max_pixels=100_000, seconds=0.5)
    app = create_app(tiny_detector("detr"), "tiny", limits)
    logging.getLogger("detrlab").addHandler(logging.NullHandler())
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", access_log=False))
    serve = functools.partial(asyncio.run, server.serve(sockets=[listening]))
    threading.Thread(target=serve, daemon=True).start()
    while not server.started:
        time.sleep(0.01)
    return listening.getsockname()[1]


def use_request(_folder: Path, file: Path, _out: Path) -> list[str]:
    """What the service answers: no failure of its own, and refusals in one sentence."""
    status, body = _answer(file.read_bytes())
    assert status != 500, f"the service failed: {body[:200]!r}"
    if status == 0:  # it waits for the rest, and must answer others meanwhile
        assert (
            _answer(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")[0]
            == 200
        )
    if status == 0 or b"Invalid HTTP request received." in body:
        raise UserError(f"{file}: no whole HTTP request")
    if status >= 400:
        raise UserError(f"{file}: {status}: {json.loads(body)['error']}")
    return []


def _answer(request: bytes) -> tuple[int, bytes]:
    """Status and body; 0 where the service waits for more, or hangs up."""
    received = b""
    with socket.create_connection(("127.0.0.1", _service()), timeout=1.0) as connection:
        with suppress(OSError):  # it may refuse before it has read everything
            connection.sendall(request)
        with suppress(OSError):
            while data := connection.recv(1 << 16):
                received += data
    head, _, body = received.partition(b"\r\n\r\n")
    status = int(head.split()[1]) if head.startswith(b"HTTP/1.1 ") else 0
    length = re.search(rb"content-length: (\d+)", head)
    return status, body[: int(length[1])] if length else body


KINDS: dict[str, Kind] = {
    "COCO": Kind(coco, {"train.json": "json", "images/p0.png": "bytes"}, use_folder, 2.0),
    "Roboflow": Kind(roboflow, {"train/_annotations.coco.json": "json"}, use_folder),
    "YOLO": Kind(
        yolo, {"data.yaml": "yaml", "labels/train/p0.txt": "text", "labels/val/p12.txt": "text"},
        use_folder, 1.5,
    ),
    "VOC": Kind(
        voc, {"Annotations/p0.xml": "text", "ImageSets/Main/train.txt": "text"}, use_folder, 1.5
    ),
    "columns": Kind(columns, {"train/metadata.jsonl": "jsonl"}, use_folder, 1.5),
    "parquet": Kind(parquet, {"train.parquet": "bytes"}, use_file, 0.2),
    "YAML": Kind(
        settings, {"data/data.yaml": "yaml", "run/config.yaml": "yaml", "plain.yaml": "yaml"},
        use_settings, 1.5,
    ),
    "zip": Kind(archived, {"data.zip": "zip"}, use_file, 1.5),
    "tar": Kind(tar, {"dataset.tar.gz": "tar"}, use_tar, 1.5),
    "image": Kind(
        images, {f"a.{each}": "bytes" for each in PICTURES.values()} | {"b.jpg": "bytes",
        "b.png": "bytes"}, use_image, 2.0,
    ),
    "safetensors": Kind(
        weights, {"detr.safetensors": "safetensors", "official.safetensors": "safetensors",
        "deformable-detr-two-stage.safetensors": "safetensors", "hub/config.json": "json",
        "hub/preprocessor_config.json": "json"}, use_weights, 1.5,
    ),
    "pth": Kind(pickles, {"new.pth": "pth", "old.pth": "pth"}, use_weights, 1.0),
    "ONNX": Kind(
        graphs, {f"{each}.onnx": "onnx" for each in ("own", "detr", "rf", "yolo", "plain")},
        use_graph, 1.5,
    ),
    "recipe": Kind(
        recipes, {f"{each}.yaml": "yaml" for each in ("tiny", "photos", "paper")}, use_recipe, 1.5
    ),
    "run": Kind(
        runs, {"compared/comparison.json": "json", "compared/ground_truth.json": "json",
        "compared/runs/run-detr/run.json": "json", "compared/runs/run-detr/result.json": "json",
        "compared/runs/run-detr/predictions.json": "json",
        "compared/predictions/other.json": "json",
        "trained/config.yaml": "yaml", "trained/metrics.json": "json",
        "trained/state.safetensors": "safetensors"}, use_run, 0.3,
    ),
    "predictions": Kind(predictions, {"found.json": "json"}, use_predictions, 1.5),
    "HTTP": Kind(
        requests, {f"{each}.http": "http" for each in
        ("raw", "form", "explain", "page", "model", "metrics")}, use_request, 1.5,
    ),
}  # fmt: skip


def environment(home: Path) -> dict[str, str]:
    """For the process that opens them: caches of its own, no network, one thread."""
    return {
        **os.environ,
        "DETRLAB_CACHE": str(home / "cache"),
        "HF_HOME": str(home / "cache" / "hub"),
        "HF_DATASETS_CACHE": str(home / "cache" / "datasets"),
        "HF_HUB_OFFLINE": "1",
        "MPLBACKEND": "Agg",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
    }
