"""Large annotation files: read in pieces, kept in mapped columns, in little memory."""

import json
import multiprocessing
import os
import pickle
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from coco_folders import one_box_each
from hypothesis import given, settings
from hypothesis import strategies as st

from detrlab.data import coco, mapped, open_data, open_whole, pieces, remembered, sources
from detrlab.data.check import check
from detrlab.data.sources import fingerprint
from detrlab.data.store import Folder
from detrlab.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def in_pieces(monkeypatch):
    """Every file counts as large, and a piece has one value."""
    monkeypatch.setattr(coco, "LARGE", 1)
    monkeypatch.setattr(remembered, "LARGE", 1)
    monkeypatch.setattr(pieces, "PIECE", 1)


# Reading in pieces -----------------------------------------------------------------------------

ODD = st.sampled_from(
    [None, True, -1, 0, 1.5, 2.0, 2**70, 1e300, "3", "x", '"}, {', "\\", "é]", [], {}, [[{"a": 1}]]]
)
IDS = st.integers(0, 5) | ODD
SIDES = st.floats(-5, 90) | st.integers(0, 40) | ODD
BOXES = st.lists(SIDES, min_size=3, max_size=5) | ODD
EXTRAS = st.fixed_dictionaries({}, optional={"segmentation": ODD, "caption": ODD, 'é"': ODD})
ANNOTATIONS = st.builds(
    lambda record, extras: record | extras,
    st.fixed_dictionaries(
        {"bbox": BOXES},
        optional={"id": IDS, "image_id": IDS, "category_id": IDS, "iscrowd": IDS, "area": SIDES},
    ),
    EXTRAS,
)
IMAGES = st.fixed_dictionaries(
    {"id": IDS}, optional={"file_name": ODD | st.just("p.png"), "height": SIDES, "width": SIDES}
)
DOCUMENTS = st.fixed_dictionaries(
    {
        "annotations": st.lists(ANNOTATIONS | ODD, max_size=6) | st.just([{}] * 3),
        "images": st.lists(IMAGES | ODD, max_size=4),
        "categories": st.just([{"id": 1, "name": "a"}, {"id": 2, "name": '["{'}]),
    },
    optional={"info": ODD, "licenses": st.just([{"name": "free"}])},
)


def read(folder: Path):
    """All that is read of a file, as plain values; or the error."""
    try:
        split = coco.read_coco(Folder.scan(folder), "a.json", "train")
    except UserError as error:
        return str(error)
    values = {each.name: getattr(split, each.name) for each in fields(split)}
    values |= {"store": None, "findings": sorted(map(repr, split.findings))}
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in values.items()}


@pytest.mark.parametrize("indent", [None, 1])
def test_pieces_read_as_the_whole_file(tmp_path, indent):
    @settings(max_examples=150, deadline=None)
    @given(document=DOCUMENTS, order=st.permutations(range(5)), ascii_=st.booleans())
    def compare(document, order, ascii_):
        items = list(document.items())
        document = dict(items[i] for i in order if i < len(items))
        text = json.dumps(document, indent=indent, ensure_ascii=ascii_)
        (tmp_path / "a.json").write_text(text, encoding="utf-8")
        whole = read(tmp_path)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(coco, "LARGE", 1)
            patch.setattr(pieces, "PIECE", 20)
            assert repr(read(tmp_path)) == repr(whole)

    compare()


GOOD = '{"images": [{"id": 1, "file_name": "a.png"}], "annotations": [], "categories": [{"id": 1}]}'


@pytest.mark.usefixtures("in_pieces")
@pytest.mark.parametrize(
    "text",
    [
        GOOD[:-1],
        GOOD[:60],
        GOOD + "}",
        GOOD + " 1",
        GOOD.replace("], ", "] ", 1),
        GOOD.replace("}], ", "}}, ", 1),
        GOOD.replace('"images"', "images"),
        GOOD.replace('"id": 1,', '"id": 1,,'),
        GOOD.replace('"a.png"}', '"a.png"}, '),
        GOOD.replace('"a.png"}', '"a.png"} {}'),
        GOOD.replace("a.png", "a\n.png"),
        GOOD.replace('": [{"id": 1, "f', '" [{"id": 1, "f'),
    ],
)
def test_broken_json_is_refused_in_pieces_too(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"a\.json is not valid JSON \(.+\): export it again"):
        coco.read_coco(Folder.scan(tmp_path), "a.json", "")


@pytest.mark.usefixtures("in_pieces")
@pytest.mark.parametrize("text", ["[]", "[1, 2]", "null", '{"images": []}', "{}"])
def test_other_large_json_is_passed_over(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    assert coco.read_coco(Folder.scan(tmp_path), "a.json", "", required=False) is None


@pytest.mark.usefixtures("in_pieces")
def test_the_last_of_two_keys_counts_in_pieces_too(tmp_path):
    text = GOOD.replace('"annotations"', '"images": [{"id": 2, "file_name": "b"}], "annotations"')
    (tmp_path / "a.json").write_text("\ufeff" + text, encoding="utf-8")
    split = coco.read_coco(Folder.scan(tmp_path), "a.json", "")
    assert split.image_ids == [2]


MEMORY = """
import resource, sys
sys.path.insert(0, "benchmarks")
from pathlib import Path
from large_data import write_annotations
from detrlab.data import coco
from detrlab.data.store import Folder

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3

folder = Path(sys.argv[1])
coco.LARGE = 1_000_000
write_annotations(folder / "small.json", 600, 6_000)  # compiles, and fills the first pieces
coco.read_coco(Folder.scan(folder), "small.json", "")
write_annotations(folder / "large.json", 6_000, 120_000)
before = peak()
split = coco.read_coco(Folder.scan(folder), "large.json", "")
print(len(split.boxes), peak() - before)
"""


def test_memory_of_reading_is_that_of_the_columns(tmp_path):
    """24 MB of json are 8 MB of columns; parsed as a whole, they are 250 MB of objects."""
    command = [sys.executable, "-c", MEMORY, str(tmp_path)]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    boxes, megabytes = result.stdout.split()
    assert int(boxes) == 120_000
    assert float(megabytes) < 90


# Mapped columns --------------------------------------------------------------------------------


@pytest.fixture
def large(tmp_path, monkeypatch, in_pieces):  # noqa: ARG001
    """A set that is remembered when it is opened."""
    monkeypatch.setenv("DETRLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sources, "MAX_MEASURED", 5)
    return one_box_each(tmp_path / "data", [[3 + i, 4, 20, 10 + i] for i in range(30)])


def kept(folder: Path) -> list[Path]:
    return sorted((folder.parent / "cache" / "tables").glob("*"))


def unread(*_arguments, **_options):
    raise AssertionError("the annotations are read again")


def test_second_opening_reads_no_annotations(large, monkeypatch):
    first = open_data(large)
    with monkeypatch.context() as patch:
        patch.setattr(coco, "_read_json", unread)
        again = open_data(large)
        with pytest.raises(AssertionError):
            open_data(large, seed=1)
    monkeypatch.setattr(sources, "place", lambda *_: None)
    fresh = open_data(large)
    for data in (first, again):
        assert fingerprint(data) == fingerprint(fresh)
        assert (data.name, data.notes, data.split_off) == (fresh.name, fresh.notes, True)
        assert isinstance(data.train.boxes, mapped.Mapped)
        assert [data.val.file(i) for i in range(6)] == [fresh.val.file(i) for i in range(6)]
        assert (data.train.picture(3) == fresh.train.picture(3)).all()


def test_whole_sets_are_kept_once(large, monkeypatch):
    open_whole(large)
    monkeypatch.setattr(coco, "_read_json", unread)
    data = open_whole(large)
    assert data.train is data.val
    assert len(data.train) == 30


def touched(folder):
    os.utime(folder / "train.json", ns=(1, 1))


def without_a_picture(folder):
    (folder / "images" / "p7.png").unlink()


def cut_short(folder):
    (path,) = kept(folder)
    path.write_bytes(path.read_bytes()[:-40])


def one_byte_changed(folder):
    (path,) = kept(folder)
    data = bytearray(path.read_bytes())
    data[-200] ^= 1
    path.write_bytes(data)


def emptied(folder):
    (path,) = kept(folder)
    path.write_bytes(b"")


@pytest.mark.parametrize(
    "change", [touched, without_a_picture, cut_short, one_byte_changed, emptied]
)
def test_what_is_stale_or_damaged_is_made_again(large, change):
    open_data(large)
    before = kept(large)
    change(large)
    data = open_data(large)
    assert len(data.train) + len(data.val) == 30 - (change is without_a_picture)
    # A changed set has another file, and the one before is gone.
    assert len(kept(large)) == 1
    assert (kept(large) == before) == (change not in (touched, without_a_picture))
    assert mapped.load_columns(*kept(large))


def test_nothing_is_kept_of_small_sets_and_where_images_were_opened(large, monkeypatch):
    monkeypatch.setattr(sources, "MAX_MEASURED", 1000)
    open_data(large)
    monkeypatch.setattr(sources, "MAX_MEASURED", 5)
    monkeypatch.setattr(remembered, "LARGE", 1_000_000)
    open_data(large)
    assert not kept(large)


def test_without_a_cache_folder_everything_is_in_memory(large, monkeypatch):
    monkeypatch.setattr(mapped, "LARGE_COLUMN", 1)
    (large.parent / "cache").write_text("a file where the folder should be")
    assert len(open_data(large).train) == 24


def total(table, queue):
    queue.put((float(table.boxes.sum()), type(table.boxes).__name__, table.file(2)))


def test_other_processes_map_the_same_file(large):
    """A table that is sent to a spawned worker takes its columns' place along, not the columns."""
    open_data(large)
    table = open_data(large).train
    copy = pickle.loads(pickle.dumps(table))
    assert isinstance(copy.boxes, mapped.Mapped)
    assert (copy.boxes == table.boxes).all()
    part = pickle.loads(pickle.dumps(table.boxes[3:5]))
    assert (part == table.boxes[3:5]).all()
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=total, args=(table, queue))
    process.start()
    assert queue.get(timeout=60) == (table.boxes.sum(), "Mapped", table.file(2))
    process.join()


def test_large_results_are_the_same_from_files(tmp_path, monkeypatch):
    monkeypatch.setenv("DETRLAB_CACHE", str(tmp_path))
    monkeypatch.setattr(mapped, "_ROWS", 7)
    values, rows = np.random.default_rng(0).normal(size=(50, 4)), np.arange(49, -1, -2)
    in_memory = mapped.gather(values, rows)
    monkeypatch.setattr(mapped, "LARGE_COLUMN", 1)
    in_file = mapped.gather(values, rows)
    assert isinstance(in_file, np.memmap)
    assert (in_file == in_memory).all()
    assert (in_memory == values[rows]).all()
    del in_file
    assert not list(tmp_path.iterdir())


def test_blocks_give_what_whole_columns_give(tmp_path, monkeypatch):
    """Opening and checking, with blocks of three boxes, twice the same and a box off its image."""
    boxes = [[3, 4, 20, 10], [3, 4, 20, 10], [70, 50, 30, 30], [200, 4, 9, 9], [0, 0, 80, 60]] * 6
    records = [
        {"id": i, "image_id": i // 4, "category_id": 1 + i % 2, "bbox": box, "iscrowd": 0}
        for i, box in enumerate(boxes)
    ]
    records.reverse()
    folder = one_box_each(
        tmp_path / "data", boxes[:8], annotations=records, categories={1: "a", 2: "b"}
    )
    (folder / "images" / "p0.png").unlink()

    def outcome():
        report = check(folder, no_images=True)
        findings = sorted(map(repr, report.findings))
        return findings, [table.boxes.tolist() for table in report.tables], report.lines()

    whole = outcome()
    monkeypatch.setattr(mapped, "_ROWS", 3)
    monkeypatch.setattr("detrlab.data.check._PART", 3)
    assert outcome() == whole


def test_a_check_without_images_opens_none(large):
    for path in (large / "images").iterdir():
        path.write_bytes(b"")
    assert check(large, no_images=True).exit_code == 0
    assert check(large, quick=True).exit_code == 1
