"""Real trainings, very small: in a process of their own, killed, timed, failing."""

import csv
import io
import os
import signal
import subprocess
import sys
import time

import pytest

import compare_cases
from compare_cases import definition, in_process, small_recipe
from detrlab.compare import compare
from detrlab.compare.runs import launch
from detrlab.errors import UserError
from detrlab.training.folder import InUseError, locked

MODELS = ("detr", "deformable-detr", "deformable-detr-two-stage")


@pytest.fixture
def planned(data, tmp_path):
    def plan(model="detr", **changes):
        (run,) = definition(data, [model], **changes).runs(tmp_path)
        run.write()
        return run

    return plan


def test_a_result_holds_metrics_curves_and_cost(planned):
    found = in_process(planned("deformable-detr-two-stage"), str)
    assert [epoch.epoch for epoch in found.epochs] == [1, 2]
    assert {"loss", "loss_class", "loss_box", "loss_giou"} <= set(found.epochs[0].losses)
    assert not {"step", "skipped", "learning_rate"} & set(found.epochs[0].losses)
    assert found.epochs[1].metrics["ap"] == found.metrics["ap"]
    assert found.epochs[1].minutes > found.epochs[0].minutes > 0
    cost = found.cost
    assert cost.parameters == cost.trainable > 10_000
    assert cost.gflops > 0
    assert cost.latency["p90"] >= cost.latency["p50"] > 0
    assert sorted(cost.input_size) == [51, 63]
    assert set(found.metrics["per_class"]) == {"box", "disc"}


def test_minutes_become_epochs_by_measuring_once(planned):
    run, said = planned(budget="minutes=0.000001", epochs=10, drop_epoch=8), []
    found = in_process(run, said.append)
    assert len(found.epochs) == 1, "the least there is"
    assert any("measuring" in line for line in said)
    (run.folder / "result.json").unlink()
    assert in_process(run, said.append).metrics == found.metrics
    assert sum("measuring" in line for line in said) == 1, "resumed with the same epochs"


@pytest.mark.parametrize("start", [in_process, launch])
def test_a_run_in_use_is_recognised(planned, start):
    run = planned()
    log = run.folder / "log.txt"
    log.write_text("of the process that is training")
    with locked(run.folder), pytest.raises(InUseError, match="is in use by process"):
        start(run, str)
    assert log.read_text() == "of the process that is training"


@pytest.mark.slow
def test_a_process_of_its_own_gives_the_same_result(planned):
    run = planned()
    said = []
    apart = launch(run, said.append)
    assert any(line.startswith("epoch 2/2") for line in said)
    (run.folder / "result.json").unlink()
    assert in_process(run, str).metrics == apart.metrics


@pytest.mark.slow
def test_a_mistake_in_a_process_of_its_own_is_told_in_one_line(planned):
    run = planned(weights="nowhere.safetensors")
    with pytest.raises(UserError, match=r"nowhere\.safetensors"):
        launch(run, str)


PROGRAM = """
import sys
from compare_cases import small_recipe
from detrlab.compare import compare
compare({models!r}, recipe=small_recipe({data!r}, epochs=3), output={folder!r})
"""


def start(data, folder):
    program = PROGRAM.format(models=MODELS, data=str(data), folder=str(folder))
    path = os.pathsep.join([os.path.dirname(compare_cases.__file__), *filter(None, sys.path)])
    return subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": path})


def wait_for(pattern, folder, process, seconds=240):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, "it ended before it could be killed"
        if any(folder.glob(pattern)):
            return
        time.sleep(0.05)
    raise AssertionError(f"{pattern} never appeared")


def without_measurements(folder):
    """The table's lines without what no two runs share: times, memory, latency."""
    lines = csv.DictReader(io.StringIO((folder / "table.csv").read_text()))
    measured = ("minutes", "peak_memory")
    return [{k: v for k, v in line.items() if k not in measured} for line in lines]


@pytest.mark.slow
def test_killed_in_the_middle_of_the_third_detector_it_ends_with_the_same_table(data, tmp_path):
    recipe = small_recipe(data, epochs=3)
    whole = compare(MODELS, recipe=recipe, output=tmp_path / "whole", trainer=in_process)
    folder = tmp_path / "cut"
    process = start(data, folder)
    wait_for(f"runs/{MODELS[-1]}-seed*/state/*.safetensors", folder, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = len(list(folder.glob("runs/*/result.json")))
    assert finished == 2
    cut = compare(MODELS, recipe=recipe, output=folder)
    assert without_measurements(cut.folder) == without_measurements(whole.folder)
    assert cut.verdicts.sentences == whole.verdicts.sentences
