"""Tar files: read where they lie, with the batches of the same images in a folder."""

import io
import json
import tarfile

import numpy as np
import pytest
import torch
from coco_folders import annotation, image_entry, picture, write_coco

from detrlab.cli import main
from detrlab.config import DataConfig
from detrlab.data import batches, open_data, shards
from detrlab.data.check import check
from detrlab.data.convert import convert
from detrlab.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """Fifteen images in two splits, with names that do not sort as they are listed."""
    for split, count, first in (("train", 11, 0), ("val", 4, 50)):
        images = [image_entry(first + i, f"b{99 - i}.png", 40 + i, 60) for i in range(count)]
        records = [
            annotation(3 * i + k, first + i, 5 + k, [2.5 * k, 3, 20 + i, 11], iscrowd=k // 2)
            for i in range(count)
            for k in range(i % 4)
        ]
        write_coco(
            tmp_path / "data", images=images, annotations=records, seed=first,
            categories={5: "a", 6: "b", 7: "c"}, name=f"{split}.json", image_folder=split,
        )  # fmt: skip
    return tmp_path / "data"


def test_shards_give_the_same_batches_as_the_folder(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "IN_A_SHARD", 4)
    assert main(["convert", str(folder), "--to", "shards", "--output", str(tmp_path / "s")]) == 0
    assert len(list((tmp_path / "s" / "train").glob("*.tar"))) == 3
    whole, packed = open_data(folder), open_data(tmp_path / "s")
    for one, other in ((whole.train, packed.train), (whole.val, packed.val)):
        assert one.classes == other.classes
        assert one.category_ids == other.category_ids
        for key in ("image_ids", "sizes", "starts", "boxes", "labels", "crowd", "areas"):
            np.testing.assert_array_equal(getattr(one, key), getattr(other, key))
    config = DataConfig(image_size=32, max_size=48, augmentation="mild")
    for workers in (0, 2):
        streams = [
            batches(data.train, config, batch=3, train=True, seed=5, epoch=2, workers=workers)
            for data in (whole, packed)
        ]
        for one, other in zip(*streams, strict=True):
            assert one.image_ids == other.image_ids
            assert torch.equal(one.images.pixels, other.images.pixels)
    assert not check(tmp_path / "s").findings.severities()["error"]
    convert(tmp_path / "s", "coco", tmp_path / "back")
    back = open_data(tmp_path / "back")
    np.testing.assert_array_equal(back.train.boxes, whole.train.boxes)


def encoded(seed):
    stream = io.BytesIO()
    picture(seed, 30, 40).save(stream, "JPEG")
    return stream.getvalue()


def pack(path, members):
    """A tar file of (name or TarInfo, bytes)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def sample(i, **changes):
    box = {"bbox": [1, 2, 10, 12], "category_id": 1}
    record = {"height": 30, "width": 40, "annotations": [box], **changes}
    return [(f"x/{i}.jpg", encoded(i)), (f"x/{i}.json", json.dumps(record).encode())]


def link(name, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


def packed(folder, *members, classes=True):
    pack(folder / "train-0.tar", [each for i in range(8) for each in sample(i)])
    pack(folder / "val-0.tar", [*sample(90), *members])
    if classes:
        text = json.dumps({"categories": [{"id": 1, "name": "a"}]})
        (folder / "categories.json").write_text(text)
    return folder


def test_shards_of_others_are_read_and_numbered(tmp_path):
    data = open_data(packed(tmp_path, ("README", b"hello"), ("y.jpg", encoded(3))))
    assert data.train.image_ids.tolist() == [*range(1, 9)]
    assert data.train.file(0) == "train-0.tar/x/0.jpg"
    assert (data.train.picture(2) - torch.from_numpy(np.array(picture(2, 30, 40))).permute(2, 0, 1)
            .float()).abs().mean() < 20  # fmt: skip
    assert len(data.val) == 1


def test_members_that_lead_elsewhere_are_never_followed(tmp_path):
    outside = tmp_path / "outside.json"
    outside.write_text(json.dumps({"height": 30, "width": 40}))
    members = [
        link("x/91.json", str(outside)),
        link("x/92.jpg", "x/90.jpg", tarfile.LNKTYPE),
        ("../../93.json", b"{}"),
        ("/94.jpg", encoded(1)),
        *sample(91)[:1],
    ]
    data = open_data(packed(tmp_path / "data", *members))
    assert len(data.val) == 1
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == [
        "categories.json", "train-0.tar", "val-0.tar",
    ]  # fmt: skip


BROKEN = {
    "not json": (sample(91)[0], ("x/91.json", b"{")),
    "a list": (sample(91)[0], ("x/91.json", b"[1]")),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_record_is_named(tmp_path, name):
    with pytest.raises(UserError, match=r"val-0\.tar/x/91\.json"):
        open_data(packed(tmp_path, *BROKEN[name]))


@pytest.mark.parametrize(
    "changes",
    [{"annotations": 5}, {"annotations": [7, {"bbox": "x"}]}, {"id": [1]}, {"height": "tall"}],
)
def test_odd_values_are_findings_as_in_any_coco_file(tmp_path, changes):
    report = check(packed(tmp_path, *sample(91, **changes)))
    assert report.findings.count("record-broken")


def test_missing_classes_and_damaged_files_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"has no classes: put a file categories\.json beside"):
        open_data(packed(tmp_path / "a", classes=False))
    folder = packed(tmp_path / "b")
    whole = (folder / "train-0.tar").read_bytes()
    second = whole.index(b"x/3.jpg")
    for damaged in (
        b"\0garbage" * 200,
        whole[: len(whole) // 2],
        whole[:second],
        whole[: second + 100],
        whole[:second] + b"?" * 512 + whole[second + 512 :],
    ):
        (folder / "train-0.tar").write_bytes(damaged)
        with pytest.raises(UserError, match=r"train-0\.tar is not a readable tar file"):
            open_data(folder)


@pytest.mark.parametrize("source", ["pipe:touch ran", "http://example.org/{0..9}.tar"])
def test_commands_and_addresses_are_no_data(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no data at"):
        open_data(source)
    assert not list(tmp_path.iterdir())
