import json
import sys
import time
from pathlib import Path

import pytest
import torch

from detrlab.checkpoints import native
from detrlab.training.distributed import join
from detrlab.training.loop import Options, train

sys.path.insert(0, str(Path(__file__).parent))

from together import CASES, launch, steps

pytestmark = pytest.mark.slow


def finish(processes, seconds=500):
    return [process.communicate(timeout=seconds)[0] for process in processes]


def test_two_processes_equal_one(tmp_path):
    """Losses, errors and gradient norm of each step, and gradients, within 1e-5.

    So does one process that cuts its step into micro-batches.
    """
    processes = launch(2, "steps", tmp_path / "two")
    alone = join("cpu")
    one = {name: steps(alone, **case) for name, case in CASES.items()}
    cut = {name: steps(alone, micro_batch=3, **case) for name, case in CASES.items()}
    said = finish(processes)
    for rank in range(2):
        # Threads of a process group that is not left sometimes abort the process at its end.
        assert said[rank].splitlines()[-1] == "joined still: False"
        assert processes[rank].returncode == 0
        assert (tmp_path / f"two-{rank}.pt").exists(), said[rank]
        two = torch.load(tmp_path / f"two-{rank}.pt", weights_only=True)
        for name, (reports, gradients) in one.items():
            for other, their_gradients in (two[name], cut[name]):
                for a, b in zip(reports, other, strict=True):
                    assert b == pytest.approx(a, rel=1e-5, abs=1e-6), name
                bound = 1e-5 * reports[-1]["norm"]
                assert gradients.keys() == their_gradients.keys()
                for key, gradient in gradients.items():
                    assert (gradient - their_gradients[key]).abs().max() < bound, (name, key)


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
