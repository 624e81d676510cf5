import json

import pytest

from compare_cases import definition, result, table, write_data
from detrlab.compare.budget import Budget
from detrlab.compare.definition import Run, slug
from detrlab.compare.results import RunResult
from detrlab.compare.runs import execute, gather, refuse_links
from detrlab.compare.verdicts import planned_pairs
from detrlab.errors import UserError
from detrlab.presets import FIVE, LADDER
from detrlab.training.folder import InUseError


@pytest.fixture
def planned(data, tmp_path):
    def plan(*models, folder="out", source=data, **changes):
        return definition(source, models or ("detr",), **changes).runs(tmp_path / folder)

    return plan


def test_the_first_seed_of_all_comes_first(planned):
    found = planned("detr", "deformable-detr", seeds=(0, 1))
    names = [(run.entrant, run.train.seed) for run in found]
    assert names == [(name, seed) for seed in (0, 1) for name in ("detr", "deformable-detr")]
    assert len({run.folder for run in found}) == 4


def test_a_key_knows_what_decides_the_result(planned, tmp_path):
    elsewhere = write_data(tmp_path / "elsewhere")
    (run,), (same,) = planned(), planned(source=elsewhere, folder="other")
    assert run.key == same.key, "where data and results are does not matter"
    path = elsewhere / "annotations" / "instances_train.json"
    path.write_text(path.read_text().replace('"category_id": 3', '"category_id": 5', 1))
    others = [planned(seeds=(1,)), planned(epochs=3), planned(budget=Budget("epochs", 3))]
    others += [planned("detr-dc5"), planned(source=elsewhere)]
    assert len({run.key, *(each.key for (each,) in others)}) == 6


def test_a_run_comes_back_from_its_folder(planned):
    (run,) = planned(budget=Budget("minutes", 1.5))
    run.write()
    assert Run.read(run.folder) == run


def test_a_finished_run_is_known_after_detrlab_has_learnt_more(planned):
    (run,) = planned()
    run.write()
    older = run.folder.with_name("named-by-an-older-key")
    run.folder.rename(older)
    path = older / "run.json"
    values = json.loads(path.read_text())
    del values["train"]["clip"]  # as if it were a newer setting
    path.write_text(json.dumps(values))
    (again,) = planned()
    assert again.folder == older
    values["train"]["clip"] = 0.7  # as if that had been the default then
    path.write_text(json.dumps(values))
    (other,) = planned()
    assert other.folder != older
    path.write_text('{"train": {"forgotten": 1}}')
    assert Run.read(older) is None


def test_a_run_in_use_is_left_to_its_process(planned):
    one, two = planned("detr", "deformable-detr")

    def trainer(run, _):
        if run is one:
            raise InUseError("in use by process 7 on another machine")
        result(run.entrant, run.seed).save(run.folder)

    (failure,) = execute([one, two], trainer, str)
    assert failure.running
    assert "process 7" in failure.reason
    assert two.result() is not None


@pytest.fixture
def stranger(tmp_path):
    """A finished run in somebody else's comparison."""
    run = tmp_path / "stranger" / "runs" / "detr"
    run.mkdir(parents=True)
    result("detr").save(run)
    (run / "predictions.json").write_text("[]")
    return run


def test_finished_runs_are_copied_whole(stranger, tmp_path):
    (stranger / "weights").mkdir()
    (stranger / "weights" / "last.safetensors").write_bytes(b"weights")
    (stranger / "run.lock").write_text("")
    gather(stranger.parents[1], tmp_path / "own", str)
    copy = tmp_path / "own" / "runs" / "detr"
    assert (copy / "weights" / "last.safetensors").read_bytes() == b"weights"
    assert not (copy / "run.lock").exists()
    (stranger / "predictions.json").write_text("changed")
    gather(stranger.parents[1], tmp_path / "own", str)
    assert (copy / "predictions.json").read_text() == "[]", "what is there stays"


@pytest.mark.parametrize("name", ["predictions.json", "weights", "weights/last.safetensors", "."])
def test_links_are_not_followed(stranger, tmp_path, name):
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "result.json").write_bytes((stranger / "result.json").read_bytes())
    path = stranger.with_name("other") if name == "." else stranger / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(secret)
    with pytest.raises(UserError, match="symbolic link"):
        refuse_links(stranger.parents[1])


def test_a_result_cannot_name_other_files(stranger):
    path = stranger / "result.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "predictions": "/etc/passwd", "folder": "/etc"}))
    found = RunResult.load(stranger)
    assert (found.folder, found.predictions) == ("runs/detr", "runs/detr/predictions.json")


@pytest.mark.parametrize(
    "changes",
    [
        {"metrics": {"ap": "high"}},
        {"metrics": {}},
        {"epochs": [{"epoch": 1}]},
        {"cost": {"minutes": float("inf")}},
        {"seed": "none"},
    ],
)
def test_damaged_results_are_named(stranger, changes):
    path = stranger / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(UserError, match=r"result\.json is damaged"):
        RunResult.load(stranger)


def test_names_become_folders():
    assert slug("num_queries=50 clip=0.1") == "num_queries=50-clip=0.1"
    assert slug("../../etc") == "etc"
    assert slug("名") == "run"


@pytest.mark.parametrize(
    ("models", "before"),
    [
        (FIVE, [None, "detr", "detr", "deformable-detr", "deformable-detr-refine"]),
        (LADDER, [None, *LADDER[:-1]]),
        (("detr-dc5", "deformable-detr-two-stage"), [None, "detr-dc5"]),
        (("deformable-detr-two-stage", "detr"), ["detr", None]),  # in whatever order
        (("a=1", "a=2", "a=3"), [None, "a=1", "a=2"]),
    ],
)
def test_each_step_is_compared_with_the_one_it_builds_on(models, before):
    pairs = [(step, model) for step, model in zip(before, models, strict=True) if step]
    assert planned_pairs(table(*(result(name) for name in models))) == pairs
