import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from detrlab.checkpoints import native
from detrlab.data import DataSet
from detrlab.data.shapes import shapes
from detrlab.training.distributed import join
from detrlab.training.loop import Options, train

sys.path.insert(0, str(Path(__file__).parent))

from together import CASES, HERE, NOT_CUT, ROUNDING, launch, steps

pytestmark = pytest.mark.slow


def finish(processes, seconds=500):
    return [process.communicate(timeout=seconds)[0] for process in processes]


@pytest.fixture(scope="module")
def alone():
    """Each case by one process."""
    return {name: steps(join("cpu"), **case) for name, case in CASES.items()}


def assert_equal(name, one, other):
    """Losses, errors and gradient norm of each step, and the last gradients and weights."""
    rounding = ROUNDING.get(name, 1e-5)
    (reports, gradients, weights), (others, their_gradients, their_weights) = one, other
    for a, b in zip(reports, others, strict=True):
        if name in ROUNDING:  # the class of a query is not a smooth measure
            a, b = ({key: each[key] for key in each if "error" not in key} for each in (a, b))
        assert b == pytest.approx(a, rel=rounding, abs=rounding / 10), name
    assert gradients.keys() == their_gradients.keys()
    for key, gradient in gradients.items():
        worst = (gradient - their_gradients[key]).abs().max()
        assert worst < rounding * reports[-1]["norm"], (name, key)
    # Adam's first steps are as large where a gradient is nothing but rounding as anywhere.
    apart = torch.cat([(weights[key] - their_weights[key]).abs().flatten() for key in weights])
    assert (apart > 1e-5).double().mean() < (0.1 if name in ROUNDING else 1e-3), name


@pytest.mark.parametrize("world", [2, 3])
def test_several_processes_equal_one(tmp_path, alone, world):
    processes = launch(world, "steps", tmp_path / "several")
    said = finish(processes)
    for rank in range(world):
        # Threads of a process group that is not left sometimes abort the process at its end.
        assert said[rank].splitlines()[-1] == "joined still: False", said[rank]
        assert processes[rank].returncode == 0, said[rank]
        several = torch.load(tmp_path / f"several-{rank}.pt", weights_only=True)
        for name, one in alone.items():
            assert_equal(name, one, several[name])


@pytest.mark.parametrize("name", sorted(CASES.keys() - NOT_CUT))
def test_micro_batches_equal_one_batch(alone, name):
    assert_equal(name, alone[name], steps(join("cpu"), micro_batch=3, **CASES[name]))


DENSE = {"resize": "square", "augmentation": "dense", "scales": 1, "repeat_threshold": 0.5}


@pytest.fixture
def asked(request, tmp_path, tiny_config):
    config = tiny_config(
        "deformable-detr",
        model={"backbone_norms": "frozen", "backbone_trains": "late", "dropout": 0.0},
        data=getattr(request, "param", {}),
    )
    config.save(tmp_path / "asked.yaml")
    return config


@pytest.mark.parametrize("asked", [{}, DENSE], ids=["padded", "dense"], indirect=True)
def test_a_run_of_two_processes_is_one_run(tmp_path, asked, tiny_data):
    processes = launch(2, "train", tmp_path / "two", tmp_path / "asked.yaml", -1)
    alone = train(asked, tmp_path / "one", tiny_data, Options(device="cpu"))
    first, second = (said.splitlines() for said in finish(processes))
    told, other = ([line for line in said if line.startswith("{")] for said in (first, second))
    assert told == other
    metrics = json.loads(told[0])["metrics"]
    assert metrics["ap"] == pytest.approx(alone.metrics["ap"], abs=0.02)
    assert sum(line.startswith("epoch ") for line in first) == 2
    assert not any(line.startswith("epoch ") for line in second)
    for said in (first, second):  # both are told why a second run cannot start there
        assert "already holds a run" in said[-1]
    ours = native.load(tmp_path / "one/weights/last.safetensors").state
    theirs = native.load(tmp_path / "two/weights/last.safetensors").state
    # Padding differs between two halves and a whole, and Adam amplifies small differences.
    assert all(torch.allclose(value, theirs[name], atol=0.02) for name, value in ours.items())


def test_when_one_process_dies_the_other_ends_and_the_run_resumes(tmp_path, asked, tiny_data):
    started = time.monotonic()
    processes = launch(2, "train", tmp_path / "run", tmp_path / "asked.yaml", 3)
    first, _ = finish(processes)
    assert time.monotonic() - started < 500
    assert [process.returncode for process in processes] == [2, -9]
    assert "error: another process" in first
    assert "--resume" in first
    outcome = train(asked, tmp_path / "run", tiny_data, Options(resume=True, device="cpu"))
    assert outcome.finished
    assert [row["step"] for row in outcome.epochs] == [2, 4]


@pytest.fixture
def three(asked):
    """Settings that three processes can share, their data, and the file of the settings."""
    config = asked.change(train=asked.train.change(batch=6).to_dict())
    return config, DataSet("shapes", *shapes(train=12, val=4))


def assert_same_run(folder, alone):
    """Metrics and weights of a run of several processes, beside the outcome of one."""
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["finished"]
    assert [row["step"] for row in metrics["epochs"]] == [row["step"] for row in alone.epochs]
    assert metrics["epochs"][-1]["ap"] == pytest.approx(alone.metrics["ap"], abs=0.02)
    ours = native.load(alone.folder.last).state
    theirs = native.load(folder / "weights/last.safetensors").state
    # Padding differs between a third and a whole, and Adam amplifies small differences.
    assert all(torch.allclose(value, theirs[name], atol=0.02) for name, value in ours.items())


def test_one_of_three_is_killed_and_two_go_on(tmp_path, three):
    config, data = three
    config.save(tmp_path / "three.yaml")
    common = [tmp_path / "run", tmp_path / "three.yaml"]
    killed = launch(3, "train", *common, 3, 12)
    said = finish(killed)
    assert [process.returncode for process in killed] == [2, -9, 2]
    assert all("error: another process" in said[rank] for rank in (0, 2))
    finish(launch(2, "train", *common, -1, 12, "SIGKILL", "resume"))
    alone = train(config, tmp_path / "one", data, Options(device="cpu"))
    assert_same_run(tmp_path / "run", alone)


def test_a_process_that_hangs_ends_the_others_in_time(tmp_path, three):
    config, _ = three
    config.save(tmp_path / "three.yaml")
    first, second = launch(2, "train", tmp_path / "run", tmp_path / "three.yaml", 2, 12, "SIGSTOP")
    try:
        said, _ = first.communicate(timeout=120)
    finally:
        second.kill()
        second.communicate()
    assert first.returncode == 2, said
    assert "error: another process of this training has ended or cannot be reached" in said


def test_torchrun_starts_the_processes_again(tmp_path, three):
    config, data = three
    config.save(tmp_path / "three.yaml")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts=1"]
    arguments = ["train", tmp_path / "run", tmp_path / "three.yaml", 3, 12]
    done = subprocess.run(
        [*command, "--nproc-per-node=3", HERE, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search("continuing after step [23]", done.stdout), done.stdout
    alone = train(config, tmp_path / "one", data, Options(device="cpu"))
    assert_same_run(tmp_path / "run", alone)
