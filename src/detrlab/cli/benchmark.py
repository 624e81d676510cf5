"""``detrlab benchmark``: what a detector, or deformable attention alone, costs on this machine."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from detrlab.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from detrlab.config import ModelConfig

_OP_SIZE = (800, 1066)
_SIZE = (640, 640)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure detectors on this machine: latency, throughput, training step, memory, arithmetic.

    With --op: verify every backend of deformable attention, and time those that are correct.
    Exit code 0: measured; 1: a backend is not used, the table says why.
    """

    model: tuple[str, ...] = ("deformable-detr-two-stage",)
    """Which detectors, one after the other: see detrlab models. Exported files (.onnx, OpenVINO's
    .xml) are timed in turn, at the size that they are made for."""
    imgsz: tuple[int, ...] = ()
    """Height and width of the images in pixels, or one number for both; by default 640, and
    800 1066 with --op."""
    batch: int | None = None
    """Images in a batch; by default 1."""
    rounds: int = 7
    """How many times everything is timed, in turn, after one round that does not count."""
    against: Literal["transformers", "original", "onnxruntime"] | None = None
    """Also measure the same architecture in transformers, in its authors' code, or as a file in
    ONNX Runtime (inference with 1 and 8 images and 1 and 2 threads, where none are given)."""
    originals: str | None = None
    """With --against original: the folder with the authors' code; by default what DETRLAB_ORIGINALS
    names."""
    train: bool = True
    """Also measure training steps."""
    memory: bool = True
    """Also measure peak memory, in separate processes."""
    op: bool = False
    """Measure deformable attention alone instead of detectors."""
    device: str = "cpu"
    """With --op: the device, such as cuda. Detectors are measured on the CPU."""
    threads: int | None = None
    """Threads that torch uses; by default its own choice."""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE")] = ()
    """Changes of the architecture: model.num_queries=100 model.backbone=resnet18 ..."""
    output: str | None = None
    """Also write everything to this JSON file. Nothing is overwritten."""
    json: bool = False
    """Print JSON instead of text."""


def run(options: Options) -> int:
    """Measure; returns the exit code."""
    import torch

    size = _size(options)
    for name, number in (("batch", options.batch), ("rounds", options.rounds)):
        if number is not None and number < 1:
            raise UserError(f"--{name} {number}: at least 1")
    if options.output is not None and Path(options.output).exists():
        raise UserError(f"--output {options.output} exists already: choose another name")
    if options.threads is not None:
        if options.threads < 1:
            raise UserError(f"--threads {options.threads}: at least 1")
        torch.set_num_threads(options.threads)
    return _measure_op(options, size) if options.op else _measure_detectors(options, size)


def _size(options: Options) -> tuple[int, int]:
    """(height, width) of the images."""
    given = options.imgsz or (_OP_SIZE if options.op else _SIZE)
    if len(given) > 2 or min(given) < 32:
        text = " ".join(map(str, given))
        raise UserError(f"--imgsz {text}: give a height and a width of at least 32, or one number")
    return given[0], given[-1]


def _measure_op(options: Options, size: tuple[int, int]) -> int:
    from detrlab.benchmark import cost, op
    from detrlab.training.distributed import pick_device

    if options.against is not None:
        raise UserError(
            "--op already times every backend that is installed: leave out --against, or --op"
        )
    device = pick_device(options.device)
    origin = cost.provenance()
    rows = op.compare_backends(
        *size, device=device, rounds=options.rounds, batch=options.batch or 1
    )
    report = {
        "picture": list(size),
        "batch": options.batch or 1,
        "rounds": options.rounds,
        "device": str(device),
        **origin,
        "rows": rows,
    }
    _show(options, report, op.table(rows))
    return 1 if any("problem" in row for row in rows) else 0


def _measure_detectors(options: Options, size: tuple[int, int]) -> int:
    from detrlab.benchmark.report import benchmark, lines
    from detrlab.cli.common import say, show

    if options.device != "cpu":
        raise UserError(
            f"--device {options.device}: detectors are measured on the CPU; only --op takes others"
        )
    others = [name for name in options.model if name.lower().endswith((".onnx", ".xml"))]
    configs = [_config(name, options.set) for name in options.model if name not in others]
    if options.against == "onnxruntime":
        return _beside_onnxruntime(options, configs, size)
    originals = None
    if options.against == "original":
        from detrlab.benchmark.original import folder_of_originals

        originals = folder_of_originals(options.originals)
        if options.set:
            raise UserError(
                "--set: the authors' code is measured as it was published: leave it out"
            )
    reports: list[dict[str, Any]] = _measure_files(options, others) if others else []
    for config in configs:
        say(f"measuring {config.preset}: {options.rounds + 1} rounds")
        try:
            report = benchmark(
                config,
                height=size[0],
                width=size[1],
                batch=options.batch or 1,
                rounds=options.rounds,
                against=options.against,
                originals=originals,
                train=options.train,
                with_memory=options.memory,
            )
        except RuntimeError as error:
            if originals is None:
                raise
            reason = " ".join(str(error).split())
            raise UserError(
                f"the authors' {config.preset} fails with images of this size ({reason[:200]}): "
                "choose the one that it was published for, with --imgsz"
            ) from error
        reports.append(report)
        if not options.json:
            show("\n".join(lines(report)))
    _show(options, reports, [])
    return 0


def _beside_onnxruntime(options: Options, configs: list[ModelConfig], size: tuple[int, int]) -> int:
    """Inference of untrained detectors, in PyTorch and as ONNX files."""
    from detrlab.api import Detector
    from detrlab.benchmark.cost import provenance
    from detrlab.cli.common import say, show
    from detrlab.export.speed import RUNTIME, beside_onnxruntime
    from detrlab.models.prepare import prepare
    from detrlab.presets import build_network

    reports = []
    for config in configs:
        say(f"measuring {config.preset}: {options.rounds + 1} rounds")
        classes = [f"class {index}" for index in range(config.num_classes)]
        origin = provenance()
        rows = beside_onnxruntime(
            Detector(prepare(build_network(config)), config, classes),
            size,
            batches=(options.batch,) if options.batch else (1, 8),
            threads=(options.threads,) if options.threads else (1, 2),
            rounds=options.rounds,
        )
        reports.append({"model": config.preset, "picture": list(size), **origin, "rows": rows})
        for row in () if options.json else rows:
            ratio = row["times_as_long"]
            show(
                f"{config.preset}, batch {row['batch']}, {row['threads']} threads: PyTorch "
                f"{row['PyTorch']['p50_ms']:.1f} ms, {RUNTIME} {row[RUNTIME]['p50_ms']:.1f} ms: "
                f"{ratio['wall']['median']:.2f} times as long "
                f"({ratio['processor']['median']:.2f} by processor time)"
            )
    _show(options, reports, [])
    return 0


def _measure_files(options: Options, names: list[str]) -> list[dict[str, Any]]:
    """Latency of exported files, from prepared pixels to detections, in one alternating run."""
    import torch

    from detrlab.benchmark.cost import provenance
    from detrlab.benchmark.timing import in_turn
    from detrlab.cli.common import say, show
    from detrlab.export import load

    if options.batch not in (None, 1):
        raise UserError(f"--batch {options.batch}: exported files are timed with one image")
    opened = {name: load(name) for name in names}
    origin = provenance()
    say(f"measuring {', '.join(names)}: {options.rounds + 1} rounds")
    noise = torch.randint(0, 256, (3, *_size(options)), dtype=torch.uint8)
    times = in_turn({name: each.inference(noise) for name, each in opened.items()}, options.rounds)
    reports = []
    for name, each in opened.items():
        row = times[name].to_dict()
        reports.append(
            {
                "model": name,
                "reading": each.description,
                "parameters": each.parameters,
                "batch": 1,
                "rounds": options.rounds,
                **origin,
                **row,
            }
        )
        if not options.json:
            show(
                f"{name}: {each.parameters:,} parameters, p50 {row['p50_ms']:.1f} p90 "
                f"{row['p90_ms']:.1f} p99 {row['p99_ms']:.1f} ms, processor "
                f"{row['processor_ms']:.1f} ms; {origin['machine']}"
            )
    return reports


def _config(preset: str, changes: tuple[str, ...]) -> ModelConfig:
    """The architecture with COCO's 91 rows of classes, as published, and what ``--set`` says."""
    from detrlab.cli.settings import parse_settings
    from detrlab.presets import model_config, settings

    known = [f"model.{name}" for name in settings()]
    given = parse_settings(changes)
    for name in given:
        if name not in known:
            raise UserError(f"--set {name}: no such setting{did_you_mean(name, known)}")
    fields = {name.removeprefix("model."): value for name, value in given.items()}
    return model_config(preset, 91, **fields)


def _show(options: Options, report: Any, text: list[str]) -> None:
    from detrlab import files
    from detrlab.cli.common import say, show

    if options.json:
        print(json.dumps(report))
    elif text:
        show("\n".join(text))
    if options.output is not None:
        files.write_json(Path(options.output), report)
        say(f"written to {options.output}")
