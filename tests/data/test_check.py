"""``check`` finds every defect there is a rule for, ``--fix`` repairs what can be repaired."""

import json
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from broken_data import every_defect
from coco_folders import annotation, one_box_each
from layouts import YAMLS, voc, voc_xml, yolo
from PIL import Image

from detrlab.config import DataConfig
from detrlab.data import open_data
from detrlab.data.check import check
from detrlab.data.check_page import write_page
from detrlab.data.convert import fix
from detrlab.data.findings import MAX_LISTED, RULES, Findings
from detrlab.data.shapes import shapes
from detrlab.errors import UserError, printable

# Found in data of other formats, or about a whole data set.
ELSEWHERE = {"line-broken", "polygon", "label-orphan", "file-broken", "box-corners"}


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    base = tmp_path_factory.mktemp("broken")
    return every_defect(base / "data", base / "outside")


@pytest.fixture(scope="module")
def report(broken):
    return check(broken.folder)


def test_every_rule_has_a_defect_in_the_tests(broken):
    assert {rule for rule, _, _ in broken.expected} | ELSEWHERE == set(RULES)


def test_every_defect_is_found_where_it_is(broken, report):
    missed = []
    for rule, place, value in broken.expected:
        if place == "detail":
            found = any(f.rule == rule and str(value) in f.detail for f in report.findings)
        else:
            found = any(f.rule == rule and getattr(f, place) == value for f in report.findings)
        if not found:
            missed.append((rule, place, value))
    assert not missed


def test_nothing_is_found_that_is_not_there(broken, report):
    """Of the images that were left as they should be."""
    wrong = {value for _, place, value in broken.expected if place == "image"}
    boxes = {value for _, place, value in broken.expected if place == "annotation"}
    good = {entry["id"] for entry in broken.images["train"][:30] if isinstance(entry, dict)}
    good |= {entry["id"] for entry in broken.images["val"][:10]}
    assert not good & wrong
    false = [f for f in report.findings if f.image in good and f.annotation not in boxes]
    assert not false


def test_fix_repairs_what_can_be_repaired(broken, report, tmp_path):
    before = _fingerprint(broken.folder)
    repair = fix(broken.folder, tmp_path / "fixed")
    assert _fingerprint(broken.folder) == before
    second = check(tmp_path / "fixed")
    left = {rule.key for rule, _, _ in second.findings.by_rule()}
    assert not {key for key in left if RULES[key].repair}, second.lines()
    assert second.exit_code == 0
    # What had no repair is still found, and nothing new has come.
    assert left <= {rule.key for rule, _, _ in report.findings.by_rule()}
    assert {"box-two-classes", "too-many-objects", "class-missing"} <= left
    changes = (tmp_path / "fixed" / "changes.txt").read_text().splitlines()
    assert tuple(changes) == repair.changes
    repaired = {line.split(":")[0] for line in changes}
    expected = {rule for rule, _, _ in broken.expected if RULES[rule].repair}
    moved = {"box-over-edge", "box-scale", "image-size"}
    assert expected - moved <= repaired
    assert sum(line.startswith("box: ") for line in changes) == 4


def test_fixed_copy_means_what_the_original_meant(broken, tmp_path):
    fix(broken.folder, tmp_path / "fixed")
    data = open_data(tmp_path / "fixed")
    assert not data.notes
    raw = json.loads((tmp_path / "fixed/annotations/instances_train.json").read_text())
    by_file = {entry["file_name"]: entry for entry in raw["images"]}
    assert by_file["jpeg_called.jpg"]
    assert by_file["moving.png"]
    boxes = {entry["file_name"]: [] for entry in raw["images"]}
    names = {entry["id"]: entry["file_name"] for entry in raw["images"]}
    for record in raw["annotations"]:
        boxes[names[record["image_id"]]].append(record["bbox"])
    every = list(chain.from_iterable(boxes.values()))
    assert [70, 50, 10, 10] in every  # clamped
    assert [50, 35, 25, 20] in every  # scaled to the file's size
    assert [20, 15, 40, 30] in every  # fractions
    assert set(data.train.classes) == {"cat", "dog", "bird", "bird (4)", "ant"}
    assert data.train.category_ids == data.val.category_ids
    for name in ("cmyk.jpg", "turned.jpg", "moving.png"):
        with Image.open(tmp_path / "fixed" / "train" / name) as image:
            assert image.mode == "RGB"
            assert not image.getexif()
    assert data.train.image_ids.dtype == np.int64


def test_training_leaves_out_what_is_broken_and_says_so(broken):
    notes = "\n".join(open_data(broken.folder).notes)
    for rule in ("box-empty", "category-unknown", "file-unsafe", "image-size", "category-mismatch"):
        assert RULES[rule].title in notes
    assert f"train: {RULES['box-empty'].title} (2); left out" in notes


def test_training_refuses_what_would_spoil_the_result(tmp_path):
    """Ids off by one: the last class is unknown, and every other one is wrong."""
    boxes = [annotation(i, i, 1 + i % 3, [5, 5, 20 + i, 30]) for i in range(12)]
    words = {0: "a", 1: "b", 2: "c"}
    one_box_each(tmp_path, boxes, annotations=boxes, categories=words)
    with pytest.raises(
        UserError, match=rf"{RULES['category-unknown'].title} \(4\).*detrlab check.*--fix"
    ):
        open_data(tmp_path)


def test_report_in_every_form(report, tmp_path):
    lines = report.lines()
    assert lines[-1] == report.verdict()
    assert "--fix" in report.verdict()
    document = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert document["ok"] is False
    assert document["counts"]["error"] == sum(
        rule["count"] for rule in document["rules"] if rule["severity"] == "error"
    )
    finding = next(f for f in document["findings"] if f["rule"] == "box-over-edge")
    assert set(finding) >= {"file", "image", "annotation", "detail", "remedy", "severity"}
    assert {split["name"] for split in document["splits"]} == {"train", "val"}
    write_page(report, tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert page.count("data:image/jpeg;base64,") > 15
    assert "http" not in page.replace("http-equiv", "")
    for rule, _, _ in report.findings.by_rule():
        assert rule.title.split(";")[0].split("'")[0] in page


def test_sound_data_is_clean(tmp_path):
    for k, split in enumerate(("train", "val")):
        parts = {"name": f"{split}.json", "image_folder": split}
        one_box_each(tmp_path / "data", [[5, 5, 20, 30]] * 30, first=100 * k, **parts)
    report = check(tmp_path / "data")
    assert report.exit_code == 0
    assert report.verdict() == "No problems found."
    assert len(report.findings) == 0
    assert report.splits[0].per_class == {"a": 30}
    assert fix(tmp_path / "data", tmp_path / "fixed").changes == ()


def test_sizes_are_counted_by_cocos_rule_on_annotated_areas(tmp_path):
    """Source: pycocotools; 32 x 32 is medium and 96 x 96 is large."""
    areas = [32**2 - 1, 32**2, 96**2 - 1, 96**2, 1e6]
    boxes = [annotation(k, 0, 1, [k, 5, 20, 20], area=area) for k, area in enumerate(areas)]
    one_box_each(tmp_path, [None], annotations=boxes)
    assert check(tmp_path).splits[0].sizes == {"small": 1, "medium": 2, "large": 2}


def test_quick_look_reads_no_pixels(broken):
    report = check(broken.folder, quick=True)
    assert report.quick
    assert report.findings.count("duplicate-exact") == 0
    assert report.findings.count("image-unreadable") == 1
    assert report.findings.count("box-over-edge") == 2
    assert report.findings.count("image-size") == 2


def test_vanishing_depends_on_the_training_size(tmp_path):
    one_box_each(tmp_path, [[5, 5, 1, 40]] * 4)
    assert check(tmp_path).findings.count("box-vanishes") == 0
    small = DataConfig(image_size=64, max_size=64)
    assert check(tmp_path, small).findings.count("box-vanishes") == 4


def test_yolo_defects(tmp_path):
    folder = yolo(tmp_path / "y", YAMLS["plain"])
    labels = folder / "labels" / "train"
    good = "0 0.5 0.5 0.25 0.25\n"
    (labels / "p001.txt").write_text(good + "0 0.5 0.5\n0 a b c d\n0.5 .5 .5 .1 .1\n")
    (labels / "p002.txt").write_text("1 .1 .1 .5 .1 .5 .5 .1 .5\n")
    (labels / "p003.txt").write_bytes(b"\xff\xfe\x00garbage\x80")
    (labels / "p004.txt").write_text("9 0.5 0.5 0.2 0.2\n-1 0.5 0.5 0.2 0.2\n")
    (labels / "p005.txt").write_text("0 nan 0.5 0.2 0.2\n0 1.9 0.5 0.2 0.2\n" + good)
    (labels / "stray.txt").write_text(good)
    report = check(folder)
    count = report.findings.count
    assert count("line-broken") == 3
    assert count("polygon") == 1
    assert count("file-broken") == 1
    assert count("category-unknown") == 2
    assert count("box-not-finite") == 1
    assert count("box-off-image") == 1
    assert count("label-orphan") == 1
    broken = next(f for f in report.findings if f.rule == "line-broken")
    assert broken.annotation == "labels/train/p001.txt line 2"
    fix(folder, tmp_path / "fixed")
    second = check(tmp_path / "fixed")
    assert not [rule.key for rule, _, _ in second.findings.by_rule() if rule.repair]
    assert (tmp_path / "fixed" / "data.yaml").is_file()


def test_voc_defects(tmp_path):
    folder = voc(
        tmp_path / "v", {"train": ["v0", "v1", "v2", "v3", "v4", "gone"], "val": ["v5", "v6"]}
    )
    pages = folder / "Annotations"
    (pages / "v0.xml").write_text("<annotation><object>")
    (pages / "v1.xml").write_text(voc_xml("v1.jpg", 40, 50, [("", (1, 1, 9, 9), False)]))
    (pages / "v2.xml").write_text(voc_xml("v2.jpg", 40, 50, [("cat", ("a", 1, 9, 9), False)]))
    (pages / "v3.xml").write_text(voc_xml("v3.jpg", 40, 50, [("cat", (9, 9, 9, 9), False)]))
    (folder / "JPEGImages" / "v4.jpg").unlink()
    count = check(folder).findings.count
    assert count("file-broken") == 1
    assert count("record-broken") == 2
    assert count("box-empty") == 1
    assert count("file-missing") == 3  # the two lines without a page, the page without a picture
    fix(folder, tmp_path / "fixed")
    second = check(tmp_path / "fixed")
    assert not [rule.key for rule, _, _ in second.findings.by_rule() if rule.repair]


def test_generated_set_can_be_checked(tmp_path, monkeypatch):
    monkeypatch.setattr("detrlab.data.check.shapes", lambda style: shapes(60, 20, style))
    report = check("shapes")
    assert report.exit_code == 0
    write_page(report, tmp_path / "shapes.html")
    with pytest.raises(UserError, match="nothing to repair"):
        fix("shapes", tmp_path / "x")


def test_output_that_exists_or_lies_inside_is_refused(broken, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        fix(broken.folder, tmp_path / "taken")
    with pytest.raises(UserError, match="inside of the original"):
        fix(broken.folder, broken.folder / "fixed")
    assert (tmp_path / "taken" / "file").read_text() == "mine"


def test_findings_count_all_and_keep_a_thousand():
    findings = Findings()
    for i in range(MAX_LISTED + 50):
        findings.add("box-empty", "train", "x.png", i)
    assert findings.count("box-empty") == len(findings) == MAX_LISTED + 50
    assert len(list(findings)) == MAX_LISTED


def test_names_of_strangers_cannot_speak_to_the_terminal(tmp_path):
    assert printable("a\x1b[31mred\n.png") == "a\\x1b[31mred\\n.png"
    assert printable("\udcff.jpg").isprintable()
    names = {1: "<script>alert(1)</script>", 2: "b\x1b[2J"}
    folder = tmp_path / "c\x1b[2J"
    report = check(one_box_each(folder, [[5, 5, 300, 20]] * 3, categories=names))
    assert all(line.isprintable() for line in report.lines())
    write_page(report, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "<script>" not in page
    assert "\x1b" not in page


def _fingerprint(folder):
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.slow
@pytest.mark.real_data
def test_real_sets(shared_data, tmp_path):
    report = check(shared_data / "facemask")
    assert report.exit_code == 0
    assert report.findings.count("too-many-objects") == 1  # 115 faces in one picture
    assert report.findings.count("duplicate-near") == 9
    report = check(shared_data / "bccd")
    assert {rule.key: count for rule, count, _ in report.findings.by_rule()} == {
        "box-empty": 2,
        "leak-near": 1,
    }
    fix(shared_data / "bccd", tmp_path / "fixed")
    assert check(tmp_path / "fixed").verdict() == "No problems found."


def test_documentation_lists_every_rule():
    page = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text()
    for rule in RULES.values():
        assert f"| `{rule.key}` | {rule.severity} | {rule.title} |" in page
        assert rule.remedy
