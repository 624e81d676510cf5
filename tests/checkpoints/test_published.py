"""The table says what the publishers say, and what is on this machine."""

import huggingface_hub.constants
import pytest

from detrlab.checkpoints import coco, published
from detrlab.errors import UserError
from detrlab.presets import PRESETS


def test_the_published_numbers():
    """Against the originals' model tables, typed a second time."""
    numbers = {
        ("detr", "resnet50"): (42.0, 86, "e632da11"),
        ("detr-dc5", "resnet50"): (43.3, 187, "f0fb7ef5"),
        ("detr", "resnet101"): (43.5, 152, "2c7b67e5"),
        ("detr-dc5", "resnet101"): (44.9, 253, "a2e86def"),
        ("deformable-detr", "resnet50"): (44.5, 173, ""),
        ("deformable-detr-refine", "resnet50"): (46.2, 173, ""),
        ("deformable-detr-two-stage", "resnet50"): (46.9, 173, ""),
        ("deformable-detr-single-scale", "resnet50"): (39.4, 78, ""),
        ("deformable-detr-single-scale-dc5", "resnet50"): (41.5, 128, ""),
        ("dino-4scale", "resnet50"): (49.0, None, ""),
        ("dino-5scale", "resnet50"): (49.4, None, ""),
        ("dino-4scale-detrex", "resnet50"): (49.2, None, ""),
        ("rt-detr-r18", "resnet18d"): (46.4, 30, ""),
        ("rt-detr-r34", "resnet34d"): (48.9, 46, ""),
        ("rt-detr-r50-m", "resnet50d"): (51.3, 50, ""),
        ("rt-detr-r50", "resnet50d"): (53.1, 68, ""),
        ("rt-detr-r101", "resnet101d"): (54.3, 130, ""),
        ("rt-detr-v2-r18", "resnet18d"): (47.9, 30, ""),
        ("rt-detr-v2-r34", "resnet34d"): (49.9, 46, ""),
        ("rt-detr-v2-r50-m", "resnet50d"): (51.9, 50, ""),
        ("rt-detr-v2-r50", "resnet50d"): (53.4, 68, ""),
        ("rt-detr-v2-r101", "resnet101d"): (54.3, 130, ""),
        ("deim-rt-detr-v2-r18", "resnet18d"): (49.0, 30, ""),
        ("d-fine-n", "hgnetv2_b0"): (42.8, 3.5, ""),
        ("d-fine-s", "hgnetv2_b0"): (48.5, 12.5, ""),
        ("d-fine-m", "hgnetv2_b2"): (52.3, 28.5, ""),
        ("d-fine-l", "hgnetv2_b4"): (54.0, 45.5, ""),
        ("d-fine-x", "hgnetv2_b5"): (55.8, 101, ""),
        ("deim-d-fine-n", "hgnetv2_b0"): (43.0, 3.5, ""),
        ("deim-d-fine-s", "hgnetv2_b0"): (49.0, 12.5, ""),
        ("deim-d-fine-m", "hgnetv2_b2"): (52.7, 28.5, ""),
        ("deim-d-fine-l", "hgnetv2_b4"): (54.7, 45.5, ""),
        ("deim-d-fine-x", "hgnetv2_b5"): (56.5, 101, ""),
        ("deimv2-atto", "hgnetv2_atto"): (23.8, 0.4, ""),
        ("deimv2-femto", "hgnetv2_femto"): (31.0, 0.85, ""),
        ("deimv2-pico", "hgnetv2_pico"): (38.5, 2.6, ""),
        ("deimv2-n", "hgnetv2_b0"): (43.0, 3.4, ""),
    }
    found = {
        (each.preset, each.backbone): (each.ap["ap"], each.gflops, each.sha256)
        for each in published.PUBLISHED
    }
    assert found == numbers


def test_every_entry_is_complete():
    files = [each.file for each in published.PUBLISHED]
    assert len(set(files)) == len(files)
    for each in published.PUBLISHED:
        assert each.preset in PRESETS
        assert each.url.startswith("https://")
        late = ("rt-detr", "d-fine", "deim")
        categories = "detrex" in each.preset or each.preset.startswith(late)
        assert each.config.num_classes == (80 if categories else 91)
        assert each.hub.count("/") == (not each.preset.startswith(("dino", "rt-detr", "deim")))
    detr = published.published("detr")
    assert detr.url == "https://dl.fbaipublicfiles.com/detr/detr-r50-e632da11.pth"


def test_the_list_of_models(tmp_path, monkeypatch):
    monkeypatch.setenv("DETRLAB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--facebook--detr-resnet-101"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("c" * 40)
    folder = repository / "snapshots" / ("c" * 40)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").touch()
    place = tmp_path / "weights" / "detr-r50-e632da11.pth"
    place.parent.mkdir()
    place.touch()
    rows = published.models()
    assert {row["preset"] for row in rows} == set(PRESETS)
    by_name = {(row["preset"], row["backbone"]): row for row in rows}
    assert by_name["detr", "resnet50"]["cached"] == str(place)
    assert by_name["detr", "resnet101"]["cached"] == str(folder)
    assert by_name["detr-dc5", "resnet50"]["cached"] is None
    assert by_name["detr", "resnet101"]["parameters"] == 60_464_672
    assert by_name["deformable-detr", "resnet50"]["trainable"] == 39_847_265
    assert by_name["detr-sigmoid", "resnet50"]["url"] is None


def test_what_is_not_published():
    with pytest.raises(UserError, match=r"'detr-dc', did you mean 'detr-dc5'\?"):
        published.published("detr-dc")
    with pytest.raises(UserError, match="with backbone 'resnet18', only with resnet50"):
        published.published("deformable-detr", "resnet18")


def test_cocos_rows_are_its_category_ids():
    assert len(coco.BY_ID) == 80
    assert len(coco.CLASSES) == len(set(coco.CLASSES)) == 91
    # The order of tools that number the 80 from 0.
    used = (
        *range(1, 12), *range(13, 26), 27, 28, *range(31, 45), *range(46, 66), 67, 70,
        *range(72, 83), *range(84, 91),
    )  # fmt: skip
    assert tuple(coco.BY_ID) == used
    assert (coco.CLASSES[1], coco.CLASSES[17], coco.CLASSES[75], coco.CLASSES[90]) == (
        "person",
        "cat",
        "remote",
        "toothbrush",
    )
    assert coco.CLASSES[12] == "unused 12"
