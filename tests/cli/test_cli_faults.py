"""What stops a command from outside: one line, exit code 2, and nothing that was there is lost."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time

import pytest
import yaml
from runs import assert_same_run
from safetensors.torch import load_file

import detrlab
from compare_cases import SMALL, small_recipe, write_data
from detrlab.cli import main
from detrlab.cli.common import fresh_folder
from detrlab.files import UNFINISHED, sha256
from detrlab.presets import PRESETS

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX limits")
PRESET = "deformable-detr-two-stage"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data, a recipe and weights."""
    folder = tmp_path_factory.mktemp("place")
    data = write_data(folder / "data", train=4, val=2)
    values = small_recipe(data).to_dict()
    (folder / "small.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    detector = detrlab.build(PRESET, ["box", "disc"], **SMALL).at_size(64)
    detector.save(folder / "tiny")
    # Of the smallest kind that can be exported for images of this size.
    sizes = {**SMALL, "encoder_width": 32, "encoder_ffn_width": 32}
    known = PRESETS["deimv2-femto"].model_fields
    sizes = {name: value for name, value in sizes.items() if name in known}
    detector = detrlab.build("deimv2-femto", ["box", "disc"], **sizes).at_size(64)
    detector.save(folder / "exported")
    return folder


@pytest.fixture
def words(place):
    """The arguments of a verb, for an output folder."""

    def make(verb, output):
        recipe = ["--recipe", str(place / "small.yaml"), "--device", "cpu"]
        pictures = ["--images", str(place / "data")]
        return {
            "train": ["train", *recipe, "--model", PRESET, "--no-preflight"],
            "compare": ["compare", *recipe, "--models", "detr"],
            "export": ["export", str(place / "exported.safetensors"), *pictures],
            "push": ["push", str(place / "tiny.safetensors"), "me/tiny", "--dry-run"],
        }[verb] + ["--output", str(output)]

    return make


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a file system of so many bytes; skips where that is refused."""
    mounted = []

    def mount(size):
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting is refused here")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fails(capsys, arguments):
    """The one line that the command ends with."""
    capsys.readouterr()
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert "Traceback" not in told
    return told.strip().splitlines()[-1]


def caused_by(error, cause):
    error.__cause__ = cause
    return error


def started(arguments):
    """The command in a process of its own."""
    program = "import sys; from detrlab.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left", "a.onnx"), "a.onnx could not be written: the disk"),
        (OSError(errno.EDQUOT, "Quota"), "a file could not be written: the disk quota is used up"),
        (MemoryError(), "memory ran out"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "memory ran out"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory ran out"),
        (RuntimeError("std::bad_alloc"), "memory ran out"),
        (caused_by(ValueError("step 2 of 3 failed"), MemoryError()), "memory ran out"),
    ],
)
def test_wherever_it_happens_it_is_one_line(monkeypatch, capsys, error, told):
    def fail(_):
        raise error

    monkeypatch.setattr("detrlab.cli.models.run", fail)
    assert told in fails(capsys, ["models"])


@pytest.mark.parametrize(
    ("verb", "size"),
    [
        ("train", "64k"),
        ("push", "64k"),
        pytest.param("compare", "24k", marks=pytest.mark.slow),
        pytest.param("export", "64k", marks=pytest.mark.slow),
    ],
)
def test_a_full_disk_is_one_line_and_with_room_the_same_command_ends(
    words, small_disk, capsys, verb, size
):
    disk = small_disk(size)
    arguments = words(verb, disk / "out")
    assert "disk is full" in fails(capsys, arguments)
    assert not [path for path in disk.rglob("*") if path.name.endswith((".tmp", ".onnx"))]
    subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
    if verb == "train" and any((disk / "out" / "state").glob("*")):
        arguments.append("--resume")
    assert verb == "export" or main(arguments) == 0  # export would trace for half a minute again


@pytest.mark.parametrize("verb", ["train", "compare", "export", "push"])
def test_a_read_only_disk_is_one_line(words, small_disk, capsys, verb):
    disk = small_disk("1m")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert "ead-only" in fails(capsys, words(verb, disk / "out"))


def test_a_run_on_a_disk_that_became_read_only_keeps_everything(words, small_disk, capsys):
    disk = small_disk("64m")
    out = disk / "out"
    assert main([*words("train", out), "--epochs", "1"]) == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    said = fails(capsys, [*words("train", out), "--epochs", "2", "--resume"])
    assert "read-only" in said
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("verb", ["train", "push", pytest.param("export", marks=pytest.mark.slow)])
def test_a_limit_on_the_size_of_files_is_one_line(words, tmp_path, capsys, verb):
    arguments = words(verb, tmp_path / "out")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        said = fails(capsys, arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "ulimit -f" in said
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith((".tmp", ".onnx"))]


@pytest.mark.parametrize("verb", ["export", "push", "compare", "eval"])
def test_a_truncated_checkpoint_is_one_line(place, tmp_path, capsys, verb):
    path = tmp_path / "half.safetensors"
    whole = (place / "tiny.safetensors").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    arguments = {
        "export": ["export", str(path), "--images", str(place / "data")],
        "push": ["push", str(path), "me/tiny", "--dry-run"],
        "compare": ["compare", "--data", str(place / "data"), "--detectors", f"x={path}"],
        "eval": ["eval", "--model", str(path), "--data", str(place / "data")],
    }[verb]
    assert "half.safetensors" in fails(capsys, [*arguments, "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


STARVED = """
import resource, sys
import hotcoco, huggingface_hub, numba, onnxscript, psutil, scipy.optimize, timm, torch.onnx
from detrlab.cli import main
from detrlab.cli import export, push, train
from detrlab.export import exporting
from detrlab.training import loop
kind, room = sys.argv[1].split("+")
status = open("/proc/self/status").read()
used = status.partition({"AS": "VmSize:", "DATA": "VmData:"}[kind])[2].split()[0]
size = 1024 * int(used) + int(float(room) * 2**20)
limit = getattr(resource, f"RLIMIT_{kind}")
before = resource.getrlimit(limit)
resource.setrlimit(limit, (size, before[1]))
code = main(sys.argv[2:])
resource.setrlimit(limit, before)  # PyTorch's own work at the exit says more than a line
sys.exit(code)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_AS")
@pytest.mark.parametrize(
    ("verb", "limits"),
    [
        ("train", ["AS+20"]),
        # At the checkpoint, at building the network, before it is traced.
        ("export", ["AS+0", "AS+2", "AS+5", "DATA+5", "AS+60"]),
        # At the checkpoint; where safetensors would end the process; at its second file.
        ("push", ["AS+0", "AS+6", "DATA+4", "DATA+12"]),
    ],
)
def test_memory_that_runs_out_is_one_line(words, tmp_path, verb, limits):
    for limit in limits:
        out = tmp_path / limit
        command = [sys.executable, "-c", STARVED, limit, *words(verb, out)]
        ended = subprocess.run(command, capture_output=True, text=True)
        assert ended.returncode == 2, (limit, ended.stderr)
        assert "Traceback" not in ended.stderr
        assert "memory ran out" in ended.stderr.strip().splitlines()[-1]
        assert not list(out.glob("*.onnx"))
        for path in out.glob("*.safetensors"):
            load_file(path)
    assert verb == "export" or main(words(verb, tmp_path / limits[0])) == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("verb", ["export", "push"])
def test_an_interrupted_command_is_one_line_and_leaves_nothing(words, tmp_path, verb, number):
    # When its folder is there, and in the middle of what follows.
    for seconds in (0.0, 4.0)[: 1 + (verb == "export")]:
        out = tmp_path / f"out{seconds}"
        process = started(words(verb, out))
        while not out.exists():
            assert process.poll() is None
            time.sleep(0.001)
        time.sleep(seconds)
        process.send_signal(number)
        told = process.communicate()[1]
        assert process.returncode == 130, told
        assert told.strip().splitlines()[-1] == f"detrlab {verb}: interrupted"
        assert "Traceback" not in told
        assert not list(out.glob(".*"))


HOLDER = """
import os, sys, tempfile, time
from detrlab.cli.common import fresh_folder
from detrlab.files import UNFINISHED, sha256
with fresh_folder(sys.argv[1]) as folder:
    tempfile.mkdtemp(prefix=UNFINISHED, dir=folder)
    if os.fork():  # a worker that outlives it
        print(folder, flush=True)
    time.sleep(600)
"""


def test_what_a_killed_export_left_is_removed_by_the_next_and_not_while_it_lives(tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-c", HOLDER, str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout.readline().strip() == str(out)
        with fresh_folder(out) as other:
            assert other == tmp_path / "out-2"
            assert len(list(out.glob(f"{UNFINISHED}*"))) == 1
        process.kill()
        process.wait()
        with fresh_folder(out) as again:
            assert again == out
            assert not list(out.iterdir())
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
    (out / "mine.txt").write_text("kept")
    tempfile.mkdtemp(prefix=UNFINISHED, dir=out)
    with fresh_folder(out) as other:
        assert other == tmp_path / "out-2"
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


TOGETHER = """
import sys
from detrlab.cli import main
from detrlab.cli import export, push
from detrlab.export import exporting
print("ready", flush=True)
sys.stdin.readline()
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("verb", ["push", pytest.param("export", marks=pytest.mark.slow)])
def test_two_commands_at_the_same_instant_write_two_folders(words, tmp_path, verb):
    command = [sys.executable, "-c", TOGETHER, *words(verb, tmp_path / "out")]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    both = [subprocess.Popen(command, text=True, **pipes) for _ in range(2)]
    for process in both:
        assert process.stdout.readline() == "ready\n"
    for process in both:
        process.stdin.write("\n")
        process.stdin.flush()
    told = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    names = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("out", "out-2")]
    assert names[0] == names[1]
    assert not any(name.startswith(".") for name in names[0])
    assert {path.name for path in tmp_path.iterdir()} == {"out", "out-2"}
    for name in ("out", "out-2"):
        for path in (tmp_path / name).glob("*.certificate.json"):
            certificate = json.loads(path.read_text())
            made = path.with_name(certificate["file"])
            assert sha256(made) == certificate["sha256"][made.name]


@pytest.mark.slow
def test_of_two_commands_that_train_in_one_folder_one_is_told(words, tmp_path):
    both = [started(words("train", tmp_path / "out")) for _ in range(2)]
    told = [process.communicate()[1] for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) == [0, 2], told
    last = told[codes.index(2)].strip().splitlines()[-1]
    assert "in use by process" in last or "holds a run" in last
    assert main(words("train", tmp_path / "alone")) == 0
    assert_same_run(tmp_path / "alone", tmp_path / "out")


@pytest.mark.slow
def test_two_comparisons_in_one_folder_share_the_work(words, tmp_path, capsys):
    arguments = words("compare", tmp_path / "out")
    both = [started(arguments) for _ in range(2)]
    told = [process.communicate()[1] for process in both]
    assert 0 in [process.returncode for process in both], told
    assert main(arguments) == 0
    assert "finished before, reused" in capsys.readouterr().err
