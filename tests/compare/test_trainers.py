"""Real trainings, very small: in a process of their own, killed, timed, failing."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time

import pytest

import compare_cases
from compare_cases import small_recipe, write_data
from detrlab.compare import compare, runs
from detrlab.compare.budget import Budget
from detrlab.compare.entrants import named
from detrlab.compare.runs import InUseError
from detrlab.compare.trainers import PILOT_FILE, train_apart, train_here
from detrlab.data import open_data
from detrlab.errors import UserError
from detrlab.training.folder import locked

MODELS = ("detr", "deformable-detr", "deformable-detr-two-stage")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "rectangles")


@pytest.fixture
def planned(data, tmp_path):
    def plan(model="detr", budget=None, **changes):
        (run,) = runs.plan(
            named([model]), small_recipe(data, **changes), open_data(data), [0],
            tmp_path / "runs", budget,
        )  # fmt: skip
        run.folder.mkdir(parents=True)
        run.save()
        return run

    return plan


def test_a_result_holds_metrics_curves_and_cost(planned, data):
    found = train_here(planned("deformable-detr-two-stage"), open_data(data), str)
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


def test_minutes_become_epochs_by_measuring_once(planned, data):
    run = planned(budget=Budget("minutes", 1e-6))
    found = train_here(run, open_data(data), str)
    assert len(found.epochs) == 1, "the least there is"
    pilot = json.loads((run.folder / PILOT_FILE).read_text())
    assert pilot["seconds_per_epoch"] == pytest.approx(2 * pilot["seconds_per_step"])


def test_a_run_in_use_is_recognised(planned, data):
    run = planned()
    with locked(run.folder), pytest.raises(InUseError, match="is in use by process"):
        train_here(run, open_data(data), str)


@pytest.mark.slow
def test_a_process_of_its_own_gives_the_same_result(planned, data):
    run = planned()
    said = []
    apart = train_apart(run, said.append)
    assert any(line.startswith("epoch 2/2") for line in said)
    (run.folder / "result.json").unlink()
    assert train_here(run, open_data(data), str).metrics == apart.metrics


@pytest.mark.slow
def test_two_processes_train_one_run_together(planned):
    said = []
    found = train_apart(planned(), said.append, device="cpu", processes=2)
    assert found.environment["processes"] == 2
    assert sum(line.startswith("epoch 2/2") for line in said) == 1, "one of them speaks"
    with pytest.raises(UserError, match="measured by one process"):
        train_apart(planned(epochs=3, budget=Budget("minutes", 1)), str, "cpu", processes=2)


@pytest.mark.slow
def test_a_mistake_in_a_process_of_its_own_is_told_in_one_line(planned):
    run = planned(weights="nowhere.safetensors")
    with pytest.raises(UserError, match=r"nowhere\.safetensors"):
        train_apart(run, str)


PROGRAM = """
import sys
from compare_cases import small_recipe
from detrlab.compare import compare
compare({models!r}, recipe=small_recipe({data!r}, epochs=3), output={folder!r}, pictures=0)
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
    whole = compare(MODELS, recipe=recipe, output=tmp_path / "whole", apart=False, pictures=0)
    folder = tmp_path / "cut"
    process = start(data, folder)
    wait_for(f"runs/{MODELS[-1]}-seed*/state/*.safetensors", folder, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = len(list(folder.glob("runs/*/result.json")))
    assert finished == 2
    cut = compare(MODELS, recipe=recipe, output=folder, pictures=0)
    assert without_measurements(cut.folder) == without_measurements(whole.folder)
    assert cut.verdicts.sentences == whole.verdicts.sentences
