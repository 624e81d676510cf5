"""Kill small trainings at random moments, resume them, and compare every bit.

    python benchmarks/kill_test.py --trainings 60 --output docs/results/kill-test.md

Each training runs in a process of its own and gets SIGKILL, which cannot be caught: at a random
moment, or before, inside or after one of its file operations (chosen at random: half-written
temporary file, before and after fsync, before and after the rename). Then it is resumed, and
killed again, until it reaches its end. Its weights, metrics and predictions must be those of the
uninterrupted training of the same settings, to the bit.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

from detrlab.checkpoints import native
from detrlab.config import DataConfig, TrainConfig
from detrlab.data import DataSet
from detrlab.data.shapes import shapes
from detrlab.presets import model_config
from detrlab.training.folder import RunConfig, RunFolder
from detrlab.training.loop import Options, train

EPOCHS = 3
KILLS = 4
"""At most so many kills a training; then it may reach its end."""

VARIANTS = {
    "detr": {"preset": "detr"},
    "two-stage, saved after every step": {
        "preset": "deformable-detr-two-stage",
        "save_every": 1,
    },
    "two-stage, average, bfloat16, 2 loader processes": {
        "preset": "deformable-detr-two-stage",
        "train": {"ema_decay": 0.9, "precision": "bfloat16"},
        "workers": 2,
    },
    "deformable, cosine, micro-batches, saved every 2 steps": {
        "preset": "deformable-detr",
        "train": {"schedule": "cosine", "micro_batch": 2, "drop_epoch": None},
        "save_every": 2,
    },
    "refine, saved after every step": {"preset": "deformable-detr-refine", "save_every": 1},
}


def config_of(preset: str, **changes: object) -> RunConfig:
    """A detector so small that a run takes a second."""
    return RunConfig(
        model=model_config(
            preset,
            6,
            backbone="test_resnet",
            backbone_norms="trained",
            backbone_trains="all",
            width=32,
            num_heads=2,
            ffn_width=32,
            encoder_layers=1,
            decoder_layers=2,
            num_queries=12,
            **({"levels": 3} if "deformable" in preset else {}),
        ),
        train=TrainConfig(
            **{
                "epochs": EPOCHS,
                "batch": 4,
                "learning_rate": 1e-3,
                "drop_epoch": 2,
                "weights": "none",
                **changes,
            }
        ),
        data=DataConfig(image_size=64, max_size=64, augmentation="light", workers=0),
    )


@dataclass
class Tally:
    """What happened to the trainings of one variant."""

    trainings: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    damaged: list[str] = field(default_factory=list)


COUNT = 0


def run_child(data: DataSet, variant: dict, folder: Path, fatal: int | None) -> None:
    """In the forked process: train, or resume; with ``fatal``, die at that file operation."""
    os.setpgid(0, 0)  # its loader processes are killed with it
    passed = die_at_operation(fatal) if fatal is not None else []
    options = Options(
        resume=RunFolder(folder).is_run,
        device="cpu",
        workers=variant.get("workers", 0),
        save_every=variant.get("save_every"),
    )
    outcome = train(config_of(variant["preset"], **variant.get("train", {})), folder, data, options)
    if fatal == COUNT:
        (folder.parent / f"{folder.name}.operations").write_text(str(len(passed)))
    os._exit(0 if outcome.finished else 3)


def die_at_operation(fatal: int) -> list[None]:
    """SIGKILL this process at its ``fatal``-th point around a file operation.

    Returns:
        a list that grows at each of them; ``COUNT`` is never reached.
    """
    passed: list[None] = []

    def point() -> None:
        passed.append(None)
        if len(passed) == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(act):
        def wrapped(*arguments, **options):
            point()
            value = act(*arguments, **options)
            point()
            return value

        return wrapped

    write_bytes = Path.write_bytes

    def write_in_halves(path: Path, data: bytes) -> int:
        point()
        write_bytes(path, data[: len(data) // 2])
        point()
        return write_bytes(path, data)

    os.fsync, os.replace = around(os.fsync), around(os.replace)
    Path.unlink = around(Path.unlink)
    Path.write_bytes = write_in_halves
    return passed


def fork(data: DataSet, variant: dict, folder: Path, fatal: int | None = None) -> int:
    """Start a training; returns its process id."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            run_child(data, variant, folder, fatal)
        except BaseException as error:
            (folder.parent / f"{folder.name}.error").write_text(f"{type(error).__name__}: {error}")
        os._exit(1)
    return child


def wait(child: int) -> int:
    """The exit code; negative is a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_group(child: int) -> None:
    """SIGKILL a training together with its loader processes."""
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:  # its process group does not exist yet
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def hurt(
    data: DataSet, variant: dict, folder: Path, seconds: float, points: int, draw: random.Random
) -> Counter[str]:
    """Train, killing at random moments, until the end is reached; the kinds of kills.

    At least one: a training that ends before it is killed is trained again.
    """
    kills: Counter[str] = Counter()
    while True:
        fatal = None
        moment = None
        if sum(kills.values()) < KILLS:
            if draw.random() < 0.5:
                fatal = draw.randint(1, points)
            else:
                moment = draw.uniform(0, 1.1 * seconds)
        child = fork(data, variant, folder, fatal)
        if moment is not None:
            time.sleep(moment)
            kill_group(child)
        code = wait(child)
        if code == 0 and not kills:
            shutil.rmtree(folder)  # it ended before it was killed: again
            continue
        if code == 0:
            return kills
        if code != -signal.SIGKILL:
            raise RuntimeError((folder.parent / f"{folder.name}.error").read_text())
        if fatal is not None:
            kill_group(child)  # loader processes that are left
        writing = any(folder.rglob("*.tmp"))
        kills["while a file was being written" if writing else "elsewhere"] += 1


def differences(a: Path, b: Path) -> list[str]:
    """What differs between two finished runs, to the bit; times are left out."""
    found = []
    for name in ("last", "best"):
        ours, theirs = (native.load(each / f"weights/{name}.safetensors") for each in (a, b))
        found += [
            f"{name}: {key}"
            for key in ours.state
            if not torch.equal(ours.state[key], theirs.state[key])
        ]
        if ours.extra != theirs.extra or ours.provenance != theirs.provenance:
            found.append(f"{name}: description")
    ours, theirs = (json.loads((each / "metrics.json").read_text()) for each in (a, b))
    for metrics in (ours, theirs):
        for row in (metrics, *metrics["epochs"]):
            row.pop("seconds"), row.pop("peak_memory", None)
    if ours != theirs:
        found.append("metrics.json")
    if (a / "predictions.json").read_bytes() != (b / "predictions.json").read_bytes():
        found.append("predictions.json")
    return found


def test(trainings: int, seed: int, folder: Path) -> dict[str, Tally]:
    """Kill and resume so many trainings, divided over the variants."""
    data = DataSet("shapes", *shapes(train=10, val=4))
    draw = random.Random(seed)
    tallies = {name: Tally() for name in VARIANTS}
    prepared = {}
    for number in range(trainings):
        name = list(VARIANTS)[number % len(VARIANTS)]
        variant = VARIANTS[name]
        if name not in prepared:
            whole = folder / f"whole-{len(prepared)}"
            started = time.perf_counter()
            if wait(fork(data, variant, whole, fatal=COUNT)) != 0:
                raise RuntimeError((folder / f"{whole.name}.error").read_text())
            seconds = time.perf_counter() - started
            points = int((folder / f"{whole.name}.operations").read_text())
            prepared[name] = whole, seconds, points
        whole, seconds, points = prepared[name]
        hurt_folder = folder / f"hurt-{number}"
        tally = tallies[name]
        tally.kills += hurt(data, variant, hurt_folder, seconds, points, draw)
        tally.trainings += 1
        tally.damaged += [f"{hurt_folder.name}: {each}" for each in differences(whole, hurt_folder)]
        print(f"{number + 1}/{trainings} {name}: {sum(tally.kills.values())} kills so far")
    return tallies


def markdown(tallies: dict[str, Tally], seed: int, seconds: float) -> str:
    """The result, for the documentation."""
    kinds = ("while a file was being written", "elsewhere")
    rows = [
        f"| {name} | {tally.trainings} | {tally.kills[kinds[0]]} | {tally.kills[kinds[1]]} "
        f"| {len(tally.damaged)} |"
        for name, tally in tallies.items()
        if tally.trainings
    ]
    trainings = sum(tally.trainings for tally in tallies.values())
    kills = sum(sum(tally.kills.values()) for tally in tallies.values())
    damaged = [each for tally in tallies.values() for each in tally.damaged]
    verdict = (
        "Every one ended with the weights, metrics and predictions of the uninterrupted training, "
        "to the bit."
        if not damaged
        else f"**Not equal: {', '.join(damaged)}**"
    )
    text = [
        "# Killed and resumed",
        "",
        f"`python benchmarks/kill_test.py --trainings {trainings} --seed {seed}` "
        f"({seconds / 60:.0f} minutes, torch {torch.__version__.split('+')[0]}, CPU)",
        "",
        f"{trainings} trainings of {EPOCHS} epochs got SIGKILL {kills} times, each at least once, "
        "at random moments and around random file operations, and were resumed until they "
        f"reached their end. {verdict}",
        "",
        "| detector and settings | trainings | kills while a file was being written "
        "| kills elsewhere | not equal |",
        "|---|---|---|---|---|",
        *rows,
        "",
    ]
    return "\n".join(text)


def warm_up() -> None:
    """Import here what every forked process would otherwise import again."""
    for name in ("hotcoco", "numba", "scipy.optimize", "timm", "torch.utils.data"):
        importlib.import_module(name)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trainings", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="write the result here, as Markdown")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warm_up()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        tallies = test(options.trainings, options.seed, Path(folder))
    text = markdown(tallies, options.seed, time.perf_counter() - started)
    print(text)
    if options.output:
        options.output.write_text(text, encoding="utf-8")
    return 1 if any(tally.damaged for tally in tallies.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
