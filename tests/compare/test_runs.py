import itertools
import json

import pytest

from compare_cases import result, small_recipe, table, write_data
from detrlab.compare import runs
from detrlab.compare.budget import Budget
from detrlab.compare.entrants import named
from detrlab.compare.runs import InUseError, Run
from detrlab.compare.verdicts import planned_pairs
from detrlab.data import open_data
from detrlab.presets import FIVE, LADDER


@pytest.fixture
def planned(tmp_path):
    def plan(data="data", models=("detr",), seeds=(0,), budget=None, folder="runs", **train):
        source = tmp_path / data
        if not source.exists():
            write_data(source)
        recipe = small_recipe(source, **train)
        return runs.plan(named(models), recipe, open_data(source), seeds, tmp_path / folder, budget)

    return plan


def test_the_first_seed_of_all_comes_first(planned):
    found = planned(models=("detr", "deformable-detr"), seeds=(0, 1))
    assert [(run.entrant, run.seed) for run in found] == [
        ("detr", 0), ("deformable-detr", 0), ("detr", 1), ("deformable-detr", 1),
    ]  # fmt: skip
    assert len({run.folder for run in found}) == 4
    assert all(run.train.seed == run.seed for run in found)


def test_a_key_knows_what_decides_the_result(planned):
    (run,) = planned()
    (same,) = planned(data="elsewhere", folder="other")
    assert run.key == same.key, "where data and results lie does not matter"
    others = [
        planned(seeds=(1,)),
        planned(epochs=3),
        planned(budget=Budget("epochs", 3)),
        planned(models=("detr-dc5",)),
    ]
    assert len({run.key, *(each.key for (each,) in others)}) == 5


def test_a_changed_annotation_changes_the_key(planned, tmp_path):
    (run,) = planned()
    path = tmp_path / "data" / "annotations" / "instances_train.json"
    path.write_text(path.read_text().replace('"category_id": 3', '"category_id": 5', 1))
    (other,) = planned()
    assert run.key != other.key


def test_a_run_comes_back_from_its_folder(planned):
    (run,) = planned(budget=Budget("minutes", 1.5))
    run.folder.mkdir(parents=True)
    run.save()
    assert Run.load(run.folder) == run


def test_a_finished_run_is_known_after_detrlab_has_learnt_more(planned):
    (run,) = planned()
    run.folder.mkdir(parents=True)
    run.save()
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
    assert Run.load(older) is None


def test_the_budget_changes_the_epochs_and_the_drop(planned):
    (run,) = planned(budget=Budget("minutes", 2), epochs=10, drop_epoch=8)
    paid = run.paid_train(100, seconds_per_epoch=24.0)
    assert (paid.epochs, paid.drop_epoch) == (5, 4)


def test_a_run_in_use_is_left_to_its_process(planned, monkeypatch):
    monkeypatch.setattr(runs, "PATIENCE", 0.0)
    one, two = planned(models=("detr", "deformable-detr"))
    said = []

    def trainer(run, _):
        if run is one:
            raise InUseError("in use by process 7 on another machine")
        result(run.entrant, run.seed).save(run.folder)

    (failure,) = runs.execute([one, two], trainer, said.append)
    assert failure.running
    assert "process 7" in failure.reason
    assert two.result() is not None


def test_names_become_folders():
    assert runs.slug("num_queries=50 clip=0.1") == "num_queries=50-clip=0.1"
    assert runs.slug("../../etc") == "etc"
    assert runs.slug("名") == "run"


@pytest.mark.parametrize(
    ("models", "pairs"),
    [
        (
            FIVE,
            [
                ("detr", "detr-dc5"),
                ("detr", "deformable-detr"),
                ("deformable-detr", "deformable-detr-refine"),
                ("deformable-detr-refine", "deformable-detr-two-stage"),
            ],
        ),
        (LADDER, list(itertools.pairwise(LADDER))),
        (
            ("detr-dc5", "deformable-detr-two-stage"),
            [("detr-dc5", "deformable-detr-two-stage")],
        ),
        (
            ("deformable-detr-two-stage", "detr"),  # in whatever order they were asked for
            [("detr", "deformable-detr-two-stage")],
        ),
        (("a=1", "a=2", "a=3"), [("a=1", "a=2"), ("a=2", "a=3")]),
    ],
)
def test_each_step_is_compared_with_the_one_it_builds_on(models, pairs):
    assert planned_pairs(table(*(result(name) for name in models))) == pairs
