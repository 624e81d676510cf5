"""Kill small commands at random moments, give them again, and compare every bit.

    python benchmarks/kill_test.py --kills 300 --output docs/results/kill-test.md

Each command runs in a process of its own and gets SIGKILL, SIGTERM or SIGINT: at a random moment,
or (SIGKILL only) before, inside or after one of its file operations, chosen at random:
half-written temporary file, before and after fsync, before and after the rename. After each kill
every file that carries its final name must be readable, and the same command is given again, and
killed again, until it ends. Its result must be that of the undisturbed command: the bits of
weights, metrics and predictions; an export's outputs and certificate; the files that the Hub holds.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib
import json
import math
import os
import pickletools
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("DETRLAB_BFLOAT16", "insist")  # slow on some processors, and small here
os.environ.pop("HF_HUB_OFFLINE", None)  # pushes go to a stand-in on this machine
os.environ.pop("DETRLAB_OFFLINE", None)
os.environ.pop("TRANSFORMERS_OFFLINE", None)
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import psutil
import torch
import yaml

import detrlab
from compare_cases import small_recipe, write_data
from detrlab.checkpoints import native
from detrlab.cli import main as detrlab_main
from detrlab.compare.results import METRICS
from detrlab.config import DataConfig, Recipe, TrainConfig
from detrlab.presets import PRESETS
from detrlab.training import state
from detrlab.training.folder import RunFolder
from hub_server import TOKEN, Hub

KILLS = 8
"""At most so many kills a command; then it may end."""
EARLY = 0.6
"""Kills come in this part of the undisturbed time: later ones find that the command has ended."""
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
SIZES = {
    "backbone": "test_resnet",
    "backbone_norms": "trained",
    "backbone_trains": "all",
    "width": 32,
    "encoder_width": 32,
    "num_heads": 2,
    "ffn_width": 32,
    "encoder_ffn_width": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_queries": 12,
}
SETTINGS = {
    "detr": {},
    "deformable-detr": {"schedule": "cosine", "micro_batch": 2, "drop_epoch": None},
    "deformable-detr-two-stage": {"ema_decay": 0.9, "precision": "bfloat16"},
    "d-fine-n": {},
    "deimv2-femto": {"ema_decay": 0.9},
}
"""How each detector trains."""
COMPARED = ("detr", "deformable-detr-two-stage")
EXPORTED = ("detr", "deimv2-femto")
PUSHED = ("deformable-detr-two-stage", "deimv2-femto")
SHARES = {"train": 120, "export": 36, "push": 72, "compare": 40, "compare --launch local:2": 32}
"""Of the kills, for each verb."""


@dataclass(frozen=True)
class Command:
    """A command that is killed.

    Attributes:
        verb: of the tables.
        subject: preset, or presets.
        words: the arguments, for a folder of its own.
        differences: what differs between the undisturbed folder and a killed one.
        hub: that it talks to.
    """

    verb: str
    subject: str
    words: Callable[[Path], list[str]]
    differences: Callable[[Path, Path], list[str]]
    hub: Hub | None = None


@dataclass
class Tally:
    """What happened to one command in all its folders."""

    verb: str
    subject: str
    commands: int = 0
    kills: dict[str, int] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)


COUNT = 0


def run_child(command: Command, folder: Path, fatal: int | None) -> None:
    """In the forked process: the command line; with ``fatal``, die at that file operation."""
    os.setpgid(0, 0)  # as a terminal does it: the command with all its processes
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & ignores it
    log = os.open(f"{folder}.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1), os.dup2(log, 2)
    passed = die_at_operation(fatal) if fatal is not None else []
    words = command.words(folder)
    sys.argv = ["detrlab", *words]
    code = detrlab_main(words)
    if fatal == COUNT:
        Path(f"{folder}.operations").write_text(str(len(passed)))
    sys.stdout.flush()
    os._exit(code)


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

    os.fsync, os.replace, os.rename = map(around, (os.fsync, os.replace, os.rename))
    Path.unlink = around(Path.unlink)
    Path.write_bytes = write_in_halves
    return passed


def fork(command: Command, folder: Path, fatal: int | None = None) -> int:
    """Give a command; returns its process id."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            run_child(command, folder, fatal)
        except BaseException as error:
            with Path(f"{folder}.log").open("a") as log:
                log.write(f"{type(error).__name__}: {error}\n")
        os._exit(99)
    return child


def wait(child: int) -> int:
    """The exit code; negative is a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def has_ended(child: int) -> bool:
    """Whether a child has ended; its exit code stays to be waited for."""
    flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, child, flags) is not None


def job_processes(folder: Path) -> list[psutil.Process]:
    """The submitted jobs of a comparison that live, with all their processes."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "submitit.local._local" in words and any(str(folder) in word for word in words):
            with contextlib.suppress(psutil.Error):
                found += [process, *process.children(recursive=True)]
    return found


def strike(command: Command, child: int, folder: Path, draw: random.Random) -> tuple[str, bool]:
    """Signal the command, processes that it started, or all; returns what was done.

    Returns:
        the name of the signal with who got it, and whether the command itself was spared.
    """
    number = draw.choice(SIGNALS)
    below: list[psutil.Process] = []
    if command.verb.startswith("compare"):
        with contextlib.suppress(psutil.Error):
            below = psutil.Process(child).children(recursive=True)
        below += job_processes(folder)
    whom = draw.choice(("command", "worker", "both")) if below else "command"
    victims = {"command": [], "worker": [draw.choice(below)] if below else [], "both": below}[whom]
    for process in victims:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)
    if whom != "worker":
        with contextlib.suppress(ProcessLookupError):
            # Of a training, its loader processes too: a terminal's Ctrl-C reaches all of them.
            (os.kill if below else os.killpg)(child, number)
    return f"{number.name} {whom}", whom == "worker"


def hurt(
    command: Command, folder: Path, seconds: float, points: int, draw: random.Random, tally: Tally
) -> None:
    """Give a command again and again, killing it, until it ends."""
    kills = calm = 0
    while True:
        fatal = moment = None
        if kills < KILLS:
            if draw.random() < 0.4:
                fatal = draw.randint(1, max(1, points // 2))
            else:
                moment = draw.uniform(0, EARLY * seconds)
        started = time.perf_counter()
        child = fork(command, folder, fatal)
        done, spared = "SIGKILL command", False
        if moment is not None:
            while time.perf_counter() < started + moment and not has_ended(child):
                time.sleep(0.005)
            done, spared = strike(command, child, folder, draw)
        code = wait(child)
        if code == 0:  # the machine may be faster by now
            seconds = min(seconds, time.perf_counter() - started)
        if code == 0 and not spared:
            return
        said = Path(f"{folder}.log").read_text(errors="replace")
        if code == 2 and command.verb == "push" and "exists already: --update" in said:
            return  # it was complete before the kill; the Hub's files are compared
        if code == 130 and command.verb in ("export", "push") and "Traceback" in said:
            tally.damaged.append(f"{folder.name}: more than a line: {said}")
        stopped = code in (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, 130)
        if not stopped and not (spared and code in (0, 1, 2)):
            calm += 1
            if (fatal is None and moment is None) or calm > 2:
                raise RuntimeError(f"{command.verb} {command.subject}: exit code {code}: {said}")
            continue
        kills += 1
        tally.kills[done] = tally.kills.get(done, 0) + 1
        tally.damaged += [f"{folder.name} after a kill: {each}" for each in unreadable(folder)]
        if code == 0:  # it went on without the process that was killed
            return


def unreadable(folder: Path) -> list[str]:
    """The files of a killed command that carry their final name and cannot be read."""
    found = []
    for path in sorted(folder.parent.rglob(f"{folder.name}*/**/*")):
        parts = path.relative_to(folder.parent).parts
        if not path.is_file() or any(part.startswith(".") for part in parts):
            continue
        try:
            READERS.get(path.suffix, Path.stat)(path)
        except FileNotFoundError:
            pass  # a run that outlives its comparison goes on
        except Exception as error:
            found.append(f"{path.name}: {type(error).__name__}: {error}")
    return found


def _table(path: Path) -> None:
    text = path.read_text()
    if not text.endswith("\n") or len({len(row) for row in csv.reader(text.splitlines())}) != 1:
        raise ValueError("half a table")


def _text(path: Path) -> None:
    if not path.read_text().rstrip().endswith("</html>" if path.suffix == ".html" else ""):
        raise ValueError("half a page")
    if not path.stat().st_size:
        raise ValueError("nothing")


def _weights(path: Path) -> None:
    from safetensors.torch import load_file

    load_file(path)
    if path.parent.name == "state" and not state.is_whole(path):
        raise ValueError("not what its name says")


def _onnx(path: Path) -> None:
    import onnx

    onnx.checker.check_model(str(path))


READERS: dict[str, Callable[[Path], object]] = {
    ".json": lambda path: json.loads(path.read_text()),
    ".yaml": lambda path: dict(yaml.safe_load(path.read_text())),
    ".csv": _table,
    **dict.fromkeys((".md", ".html", ".tex"), _text),
    ".safetensors": _weights,
    ".onnx": _onnx,
    ".pkl": lambda path: list(pickletools.genops(path.read_bytes())),
}


# --- what must be equal -----------------------------------------------------------------


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


def compared_differences(a: Path, b: Path) -> list[str]:
    """What differs between two comparisons: runs to the bit, tables and verdicts."""
    runs = sorted(path.name for path in (a / "runs").iterdir())
    if runs != sorted(path.name for path in (b / "runs").iterdir()):
        return ["other runs"]
    found = [f"{run}: {d}" for run in runs for d in differences(a / "runs" / run, b / "runs" / run)]
    results = [json.loads((each / "comparison-result.json").read_text()) for each in (a, b)]
    ours, theirs = (
        (each["verdicts"], each["failures"], [_unmeasured(row) for row in each["models"]])
        for each in results
    )
    if ours != theirs:
        found.append("comparison-result.json")
    return found


def _unmeasured(row: dict) -> dict:
    """A detector's results without times and memory."""
    return {key: value for key, value in row.items() if key in ("model", "seeds", *METRICS)}


def exported_differences(a: Path, b: Path) -> list[str]:
    """What differs between two exports: the certificates' verdicts and the files' outputs."""
    outputs = []
    for each in (a, b):
        folder = max(each.parent.glob(f"{each.name}*/"), key=lambda path: path.stat().st_mtime_ns)
        (path,) = folder.glob("*.certificate.json")
        certificate = json.loads(path.read_text())
        file = folder / certificate["file"]
        if not certificate["accepted"] or detrlab.files.sha256(file) not in (
            certificate["sha256"].values()
        ):
            return ["the certificate is not this file's"]
        picture = torch.arange(3 * 64 * 64, dtype=torch.uint8).view(3, 64, 64)
        found = detrlab.export.load(file).predict(picture, threshold=0.0)
        outputs.append((found.boxes, found.scores, found.labels))
        if any(each.parent.glob(f"{each.name}*/{detrlab.files.UNFINISHED}*")):
            return ["a killed export has left something"]
    equal = all(torch.equal(*pair) for pair in zip(*outputs, strict=True))
    return [] if equal else ["outputs"]


def pushed_differences(hub: Hub, a: Path, b: Path) -> list[str]:
    """What differs between the files of two repositories of the stand-in."""
    ours, theirs = (hub.repositories.get(f"me/{each.name}", {}) for each in (a, b))
    if ours.keys() != theirs.keys() or not ours:
        return [f"the Hub holds {sorted(theirs)}, not {sorted(ours)}"]
    # The page names its own repository.
    names = [a.name.encode(), b.name.encode()]
    return [key for key in ours if ours[key].replace(*names) != theirs[key]]


# --- the commands -----------------------------------------------------------------------


def recipe(place: Path, data: Path, name: str, fields: set[str], settings: dict) -> str:
    """The file of a recipe that trains in a second."""
    made = Recipe(
        name=name,
        model={key: value for key, value in SIZES.items() if key in fields}
        | ({"levels": 3} if name.startswith("deformable") else {}),
        train=TrainConfig(
            **{"epochs": 2, "batch": 4, "learning_rate": 1e-3, "weights": "none", **settings}
        ),
        data=DataConfig(
            data=str(data), image_size=64, max_size=64, augmentation="light", workers=0
        ),
    )
    path = place / f"{name}.yaml"
    path.write_text(yaml.safe_dump(made.to_dict(), sort_keys=False))
    return str(path)


def commands(place: Path) -> list[Command]:
    """One for each verb and detector."""
    data = write_data(place / "data", train=8, val=4)
    found = []

    def train(preset: str, file: str, folder: Path) -> list[str]:
        words = ["train", "--recipe", file, "--model", preset, "--output", str(folder)]
        words += ["--no-preflight", "--device", "cpu", "--save-every", "1"]
        return [*words, *["--resume"] * RunFolder(folder).is_run]

    for preset, settings in SETTINGS.items():
        file = recipe(place, data, preset, set(PRESETS[preset].model_fields), settings)
        found.append(Command("train", preset, partial(train, preset, file), differences))
    both = place / "both.yaml"
    both.write_text(yaml.safe_dump(small_recipe(data).to_dict(), sort_keys=False))

    def compare(more: list[str], folder: Path) -> list[str]:
        words = ["compare", "--recipe", str(both), "--models", *COMPARED, "--output", str(folder)]
        return [*words, "--device", "cpu", *more]

    subject = " and ".join(COMPARED)
    for more in ([], ["--launch", "local:2"]):
        verb = " ".join(["compare", *more])
        found.append(Command(verb, subject, partial(compare, more), compared_differences))
    pictures = place / "pictures"
    shutil.copytree(data / "val", pictures)

    def weights(preset: str) -> str:
        sizes = {key: value for key, value in SIZES.items() if key in PRESETS[preset].model_fields}
        detector = detrlab.build(preset, ["box", "disc"], **sizes).at_size(64)
        path = detector.save(place / f"{preset}-weights")
        path.with_suffix(".certificate.json").write_text("{}")
        return str(path)

    def export(file: str, folder: Path) -> list[str]:
        return ["export", file, "--output", str(folder), "--images", str(pictures)]

    def push(file: str, hub: Hub, folder: Path) -> list[str]:
        os.environ["HF_ENDPOINT"] = hub.url
        return ["push", file, f"me/{folder.name}", "--output", str(folder)]

    for preset in PUSHED:
        hub = Hub()
        words, compared = partial(push, weights(preset), hub), partial(pushed_differences, hub)
        found.append(Command("push", preset, words, compared, hub))
    for preset in EXPORTED:
        words = partial(export, weights(preset))
        found.append(Command("export", preset, words, exported_differences))
    return found


def test(kills: int, verbs: list[str], seed: int, place: Path) -> list[Tally]:
    """Kill so many times, divided over the commands by ``SHARES``; all commands at once."""
    made = [command for command in commands(place) if command.verb in verbs]
    total = sum(SHARES[verb] for verb in verbs)
    testers = []
    for number, command in enumerate(made):
        alike = sum(other.verb == command.verb for other in made)
        wanted = math.ceil(kills * SHARES[command.verb] / total / alike)
        sys.stdout.flush()
        testers.append(os.fork())
        if testers[-1] == 0:
            try:
                own = place / str(number)
                own.mkdir()
                if command.hub is not None:
                    threading.Thread(target=command.hub.serve_forever, daemon=True).start()
                found = test_command(command, wanted, random.Random(f"{seed} {number}"), own)
                (place / f"{number}.json").write_text(json.dumps(asdict(found)))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
    codes = [wait(tester) for tester in testers]
    if any(codes):
        raise RuntimeError("see above")
    found = [(place / f"{number}.json").read_text() for number in range(len(made))]
    return [Tally(**json.loads(text)) for text in found]


def test_command(command: Command, wanted: int, draw: random.Random, place: Path) -> Tally:
    """Kill one command so many times, in one folder after the other."""
    tally = Tally(command.verb, command.subject)
    whole = place / "whole"
    started = time.perf_counter()
    if wait(fork(command, whole, fatal=COUNT)) != 0:
        raise RuntimeError(Path(f"{whole}.log").read_text())
    seconds = time.perf_counter() - started
    points = int(Path(f"{whole}.operations").read_text())
    while sum(tally.kills.values()) < wanted:
        folder = place / f"hurt-{tally.commands}"
        hurt(command, folder, seconds, points, draw, tally)
        psutil.wait_procs(job_processes(folder), timeout=60)
        tally.commands += 1
        tally.damaged += [f"{folder.name}: {each}" for each in command.differences(whole, folder)]
        for each in place.glob(f"{folder.name}*/"):
            shutil.rmtree(each)
        print(
            f"{command.verb}, {command.subject}: {sum(tally.kills.values())} kills, "
            f"{len(tally.damaged)} differences",
            flush=True,
        )
    return tally


def markdown(tallies: list[Tally]) -> str:
    """The result, for the documentation."""
    rows = []
    by_whom: Counter[str] = Counter()
    for tally in tallies:
        by_signal: Counter[str] = Counter()
        for kind, count in tally.kills.items():
            name, whom = kind.split()
            by_signal[name] += count
            by_whom[whom] += count
        cells = [tally.verb, tally.subject, tally.commands]
        cells += [by_signal[number.name] for number in SIGNALS]
        cells.append(len(tally.damaged))
        rows.append(f"| {' | '.join(map(str, cells))} |")
    damaged = [each for tally in tallies for each in tally.damaged]
    verdict = (
        "Every one ended with the result of the undisturbed command: weights, metrics and "
        "predictions to the bit, an export's outputs with its certificate, the files on the Hub. "
        "After each kill every file with its final name could be read."
        if not damaged
        else f"**Not equal: {', '.join(damaged)}**"
    )
    text = [
        "# Killed and given again",
        "",
        f"`python benchmarks/kill_test.py --output docs/results/kill-test.md` "
        f"(torch {torch.__version__.split('+')[0]}, CPU, on a busy machine)",
        "",
        f"{sum(tally.commands for tally in tallies)} commands were killed {by_whom.total()} times, "
        "at random moments and around random file operations, and given again until they ended. "
        f"{verdict}",
        "",
        f"The command alone was hit {by_whom['command']} times, one of the processes that it had "
        f"started {by_whom['worker']} times, all of them {by_whom['both']} times.",
        "",
        "| verb | detectors | commands | SIGKILL | SIGTERM | SIGINT | not equal or not readable |",
        "|---|---|---|---|---|---|---|",
        *rows,
        "",
    ]
    return "\n".join(text)


def warm_up() -> None:
    """Import here what every forked process would otherwise import again."""
    for name in ("hotcoco", "numba", "scipy.optimize", "timm", "torch.utils.data", "matplotlib"):
        importlib.import_module(name)
    for name in ("onnxruntime", "onnxscript", "torch.onnx", "huggingface_hub", "transformers"):
        importlib.import_module(name)
    for name in ("train", "compare", "export", "push"):
        importlib.import_module(f"detrlab.cli.{name}")
    for name in ("export.exporting", "explain.curves", "report.page", "compare", "api"):
        importlib.import_module(f"detrlab.{name}")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--verbs", nargs="+", choices=list(SHARES), default=list(SHARES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--output",
        type=Path,
        help="write the result here, as Markdown and JSON; the JSON's other verbs are kept",
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["HF_TOKEN"] = TOKEN
    with tempfile.TemporaryDirectory() as folder:
        warm_up()
        tallies = test(options.kills, options.verbs, options.seed, Path(folder))
    if options.output:
        record = options.output.with_suffix(".json")
        if record.is_file():
            kept = [Tally(**each) for each in json.loads(record.read_text(encoding="utf-8"))]
            tallies += [each for each in kept if each.verb not in options.verbs]
        record.write_text(
            json.dumps([asdict(each) for each in tallies], separators=(",", ":")) + "\n"
        )
        options.output.write_text(markdown(tallies), encoding="utf-8")
    print(markdown(tallies))
    return 1 if any(tally.damaged for tally in tallies) else 0


if __name__ == "__main__":
    sys.exit(main())
