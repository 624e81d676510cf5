import json
import lzma
from pathlib import Path

import pytest
import torch

from compare_cases import FakeTrainer, detections, small_recipe, write_data
from detrlab.cli.compare import finish
from detrlab.compare import Trained, collect, compare
from detrlab.data import open_data
from detrlab.errors import UserError
from detrlab.export import OtherDetector
from detrlab.presets import FIVE

THREE = ("detr", "deformable-detr", "deformable-detr-two-stage")
NOISES = dict(zip(FIVE, (0.3, 0.28, 0.15, 0.12, 0.03), strict=True))


@pytest.fixture(scope="module")
def truth(data):
    return open_data(data).val.coco_ground_truth()


@pytest.fixture
def run(data, truth, tmp_path):
    def run(models=THREE, folder="out", failing=(), trainer=None, recipe=None, **changes):
        trainer = trainer or FakeTrainer(truth, NOISES, failing)
        recipe = recipe or small_recipe(data)
        output = tmp_path / folder
        return compare(models, recipe=recipe, output=output, trainer=trainer, **changes), trainer

    return run


def test_a_comparison_leaves_everything_it_promises(run):
    found, trainer = run()
    assert trainer.trained == [(name, 42) for name in THREE]
    names = {path.name for path in found.folder.iterdir()}
    assert names >= {
        "table.md", "table.csv", "table.tex", "original-layout.md", "recipe.yaml",
        "comparison-result.json", "ground_truth.json", "runs",
    }  # fmt: skip
    aps = [row.metrics["ap"] for row in found.rows]
    assert aps == sorted(aps), "the fake detectors are made to be better and better"
    assert "deformable-detr-two-stage has the highest AP" in found.verdicts.sentences[0]
    written = json.loads((found.folder / "comparison-result.json").read_text())
    assert [model["model"] for model in written["models"]] == list(THREE)
    assert written["models"][0]["ap"] == aps[0]
    assert ["two-stage" in line for line in written["steps"][1]["changes"]] == [True]
    assert [step["step"] for step in written["ladder"]] == list(THREE)
    assert "What each step bought" in (found.folder / "table.md").read_text()


def test_finished_runs_are_reused(run):
    first, _ = run()
    again, trainer = run()
    assert trainer.trained == []
    assert again.verdicts.sentences == first.verdicts.sentences
    more, trainer = run(models=(*THREE, "detr-dc5"), seeds=(42, 7))
    assert ("detr", 42) not in trainer.trained
    assert {name for name, seed in trainer.trained if seed == 42} == {"detr-dc5"}
    assert [row.name for row in more.rows] == ["detr", "detr-dc5", *THREE[1:]]
    assert more.rows[0].seeds == (42, 7)
    assert "2 seeds" in more.verdicts.sentences[-1]


def test_one_failure_does_not_take_the_others_with_it(run):
    said = []
    found, _ = run(failing=["deformable-detr"], report=said.append)
    assert [row.name for row in found.rows] == ["detr", "deformable-detr-two-stage"]
    (failure,) = found.failures
    assert failure.reason == "MemoryError: no more of it"
    mended, trainer = run()
    assert trainer.trained == [("deformable-detr", 42)]
    assert not mended.failures
    with pytest.raises(UserError, match=r"no detector has finished .*no more of it"):
        run(failing=THREE, folder="all")


def test_an_interrupted_comparison_goes_on_to_the_same_table(run, truth):
    class Interrupted(FakeTrainer):
        def __call__(self, run, report):
            if run.entrant == "deformable-detr":
                raise KeyboardInterrupt
            return super().__call__(run, report)

    whole, _ = run(folder="whole")
    with pytest.raises(KeyboardInterrupt):
        run(folder="cut", trainer=Interrupted(truth, NOISES))
    cut, trainer = run(folder="cut")
    assert len(trainer.trained) == 2
    for name in ("table.csv", "table.tex", "original-layout.md"):
        assert (cut.folder / name).read_bytes() == (whole.folder / name).read_bytes()


def test_a_folder_keeps_to_one_recipe_and_one_data_set(run, data, tmp_path):
    run()
    with pytest.raises(UserError, match=r"another recipe \(train.epochs: 2 -> 3\)"):
        run(recipe=small_recipe(data, epochs=3))
    with pytest.raises(UserError, match="budget: None -> 5 epochs"):
        run(budget="epochs=5")
    other = write_data(tmp_path / "other", train=11)
    with pytest.raises(UserError, match="other data"):
        run(recipe=small_recipe(other))


def test_another_tool_stands_in_the_same_table(run, truth, tmp_path):
    file = tmp_path / "yolo.json"
    file.write_text(json.dumps(detections(truth, 0.05)))
    found, _ = run(models=THREE[:2], predictions=[f"yolo={file}"])
    assert [row.name for row in found.rows] == ["detr", "deformable-detr", "yolo"]
    assert found.rows[-1].seeds == ()
    pairs = {(each.first, each.second) for each in found.verdicts.found.of("ap")}
    assert pairs == {("detr", "deformable-detr"), ("deformable-detr", "yolo")}
    file.unlink()
    again = collect(found.folder, report=str)
    assert again.rows[-1].metrics == found.rows[-1].metrics, "a copy of the file was kept"
    moved = collect(tmp_path / "moved", [found.folder], report=str)
    assert moved.rows[-1].metrics == found.rows[-1].metrics, "and it is collected"


@pytest.mark.parametrize(
    ("given", "message"),
    [("yolo", "NAME=FILE"), ("y=none.json", "none.json"), (f"detr={__file__}", "'detr'")],
)
def test_predictions_are_name_and_file(run, given, message):
    with pytest.raises(UserError, match=message):
        run(predictions=[given])


def test_collecting_reads_nothing_outside_of_the_folders(run, tmp_path):
    """A stranger's folder may name any file of this machine, or link to it."""
    found, _ = run(folder="stranger", models=THREE[:2])
    secret = tmp_path / "secret.json"
    secret.write_text("[]")
    path = found.folder / "comparison.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "predictions": {"yolo": str(secret)}}))
    with pytest.raises(UserError, match="cannot be read"):
        collect(tmp_path / "own", [found.folder], report=str)
    (found.folder / "predictions").mkdir()
    (found.folder / "predictions" / "yolo.json").symlink_to(secret)
    with pytest.raises(UserError, match="symbolic link"):
        collect(tmp_path / "own", [found.folder], report=str)
    path.write_text(json.dumps(values))
    (found.folder / "ground_truth.json").unlink()
    (found.folder / "ground_truth.json").symlink_to(secret)
    with pytest.raises(UserError, match="symbolic link"):
        collect(tmp_path / "other", [found.folder], report=str)
    copied = {path.name for path in tmp_path.glob("o*/**/*.json")}
    assert "yolo.json" not in copied
    assert (tmp_path / "own" / "ground_truth.json").read_text() != "[]"


@pytest.mark.parametrize(
    "damage", [{"recipe": {"name": 3}}, {"data": {}}, {"seeds": "x"}, {"entrants": [{}]}]
)
def test_a_damaged_definition_is_named(run, damage):
    found, _ = run(models=THREE[:1])
    path = found.folder / "comparison.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **damage}))
    with pytest.raises(UserError, match=r"comparison\.json is damaged"):
        collect(found.folder, report=str)


def test_machines_share_the_work_and_it_is_merged_later(run, tmp_path):
    whole, _ = run(folder="whole")
    run(folder="one", models=THREE[:1])
    run(folder="two", models=THREE[1:])
    merged = collect(tmp_path / "merged", [tmp_path / "one", tmp_path / "two"], report=str)
    assert (merged.folder / "table.csv").read_bytes() == (whole.folder / "table.csv").read_bytes()
    assert merged.data is None, "what the collected folders name is not opened"
    again = collect(merged.folder, report=str)
    assert again.data is None, "nor is it later"
    place = whole.definition.recipe.data.data
    named = collect(tmp_path / "merged", data=place, report=str)
    assert named.data.val.classes == ("box", "disc")
    assert collect(tmp_path / "merged", report=str).data is not None, "the data was found again"


def test_committed_results_are_compressed(run, tmp_path):
    found, _ = run()
    table = (found.folder / "table.csv").read_bytes()
    files = [found.folder / "ground_truth.json", *found.folder.glob("runs/*/predictions.json")]
    for file in files:
        Path(f"{file}.xz").write_bytes(lzma.compress(file.read_bytes()))
        file.unlink()
    assert (collect(found.folder, report=str).folder / "table.csv").read_bytes() == table
    again = collect(tmp_path / "again", [found.folder], report=str)
    assert (again.folder / "table.csv").read_bytes() == table
    files[1].with_name("predictions.json.xz").write_bytes(b"cut off")
    with pytest.raises(UserError, match=r"predictions\.json\.xz is damaged"):
        collect(found.folder, report=str)


def test_seeds_from_two_machines_join(run, data, tmp_path):
    recipes = [small_recipe(data), small_recipe(data)]
    recipes[1] = recipes[1].change(data=recipes[1].data.change(workers=1))
    for seed, recipe in ((3, recipes[0]), (1, recipes[1])):
        run(folder=f"seed{seed}", models=THREE[:2], recipe=recipe, seeds=(seed,))
    merged = collect(tmp_path / "merged", [tmp_path / "seed3", tmp_path / "seed1"], report=str)
    assert [row.seeds for row in merged.rows] == [(3, 1), (3, 1)], "in the order of the folders"
    assert merged.definition.recipe.data.workers == 0
    other = small_recipe(data, micro_batch=2)
    with pytest.raises(UserError, match=r"another recipe \(train.micro_batch: None -> 2\)"):
        run(folder="seed3", recipe=other)  # its images are padded less


def test_collecting_refuses_what_does_not_belong(run, data, tmp_path):
    run(folder="one", models=THREE[:1])
    run(folder="two", models=THREE[1:], recipe=small_recipe(data, epochs=3))
    with pytest.raises(UserError, match="another recipe"):
        collect(tmp_path / "merged", [tmp_path / "one", tmp_path / "two"], report=str)
    with pytest.raises(UserError, match="holds no comparison"):
        collect(tmp_path / "merged", [tmp_path / "nowhere"], report=str)
    with pytest.raises(UserError, match="holds no comparison"):
        collect(tmp_path / "nowhere", report=str)


def test_where_nothing_is_learnt_no_detector_is_called_better(run, truth):
    trainer = FakeTrainer(truth, dict.fromkeys(FIVE, 9.0))
    found, _ = run(trainer=trainer)
    (sentence,) = found.verdicts.sentences
    assert "0.0" in sentence


def test_the_command_line_writes_the_page_and_prints_the_tables(run, capsys):
    found, _ = run(models=THREE[:2])
    assert finish(found, as_json=False, ladder=True) == 0
    printed = capsys.readouterr().out
    assert "What each step bought" in printed
    assert "deformable-detr" in printed
    assert found.verdicts.sentences[0][:40] in printed
    assert found.report.is_file()
    assert list((found.folder / "pictures").glob("*.svg"))
    failed, _ = run(models=THREE, failing=THREE[2:])
    assert finish(failed, as_json=True) == 1
    assert json.loads(capsys.readouterr().out)["failures"][0]["entrant"] == THREE[2]


class Middle(OtherDetector):
    """Finds one object of each class in the middle of every picture."""

    notes = ("resize is assumed",)
    description = "pictures as they are"
    parameters = 1234

    def __init__(self, classes):
        self.classes = (*classes, "unicorn")
        self.category_ids = tuple(range(len(self.classes)))
        self.rename = {}

    def detect(self, pixels, limit=100):
        height, width = pixels.shape[1:]
        count = min(len(self.classes), limit)
        boxes = torch.tensor([[width / 4, height / 4, width * 0.75, height * 0.75]] * count)
        scores = torch.linspace(0.9, 0.1, count)
        return self.found(boxes, scores, torch.arange(count), (height, width))

    def inference(self, pixels):
        return lambda: self.detect(pixels)


def test_a_trained_detector_stands_in_the_same_table(run, data, tmp_path):
    said = []
    middle = Trained("middle", "middle.onnx", Middle(open_data(data).val.classes))
    found, trainer = run(models=THREE[:1], trained=[middle], report=said.append)
    assert [row.name for row in found.rows] == ["detr", "middle"]
    assert found.rows[1].cost.parameters == 1234
    assert found.rows[1].cost.latency["p50"] >= 0
    assert ("detr", "middle") in {(d.first, d.second) for d in found.verdicts.found.of("ap")}
    assert "middle: resize is assumed" in said
    assert any("1 classes of the model are not in the data" in line for line in said)
    moved = collect(tmp_path / "moved", [found.folder], report=str)
    assert moved.rows[1].metrics == found.rows[1].metrics
    assert moved.rows[1].cost == found.rows[1].cost, "what it costs is collected too"
    facts = found.folder / "predictions" / "middle.facts.json"
    facts.write_text('{"cost": {"parameters": "many"}}')
    with pytest.raises(UserError, match=r"middle\.facts\.json is damaged"):
        collect(found.folder, report=str)

    alone, trainer = run(models=(), trained=[middle], folder="alone")
    assert [row.name for row in alone.rows] == ["middle"]
    assert trainer.trained == [], "nothing is trained unless models are named"
    with pytest.raises(UserError, match="'detr' takes part twice"):
        run(models=THREE[:1], trained=[middle._replace(name="detr")])
