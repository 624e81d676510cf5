"""From a folder, a file or an archive to annotations as they are: the format is detected."""

from __future__ import annotations

import difflib
import os
import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from detrlab.data.coco import OTHER_TASKS, read_coco
from detrlab.data.findings import Findings
from detrlab.data.hub import HUB, downloaded, metadata_files, notes_of, read_metadata
from detrlab.data.locate import is_image, links_note, split_of
from detrlab.data.raw import RawSplit
from detrlab.data.shapes import STYLES
from detrlab.data.shards import read_shards
from detrlab.data.store import Archive, Folder, Store
from detrlab.data.voc import read_voc, voc_files
from detrlab.data.yolo import read_yolo, yolo_folders, yolo_yaml
from detrlab.errors import UserError

BUILT_IN = (*STYLES, "cppe5")

MAX_JSON_FILES = 20
"""If there are more, only those with names like COCO's are opened."""

Progress = Callable[[int, int], None]
"""Called with how many bytes or images of how many are done."""

_NOT_READ = (
    ".csv", ".tsv", ".tfrecord", ".tfrecords", ".mat", ".heic", ".heif", ".avif",
)  # fmt: skip
"""Extensions that people have and that would be passed over silently."""

_COCO_NAME = re.compile(r"coco|instances|annotations|train|val|test|labels|result", re.I)
_ANNOTATION_FOLDERS = {"annotations", "annotation", "labels", "json", "coco"}


@dataclass(frozen=True)
class RawData:
    """A data set as annotated: its splits, and findings and notes about none of them alone."""

    name: str
    splits: tuple[RawSplit, ...]
    findings: Findings = field(default_factory=Findings)
    notes: tuple[str, ...] = ()


class Found(NamedTuple):
    """Where a data set lies, and what reads its annotations."""

    store: Store
    read: Callable[[], RawData]


def read_raw(source: str | Path, *, progress: Progress | None = None) -> RawData:
    """A data set as annotated, in any of the formats.

    Raises:
        UserError: there is none.
    """
    return find(source, progress=progress).read()


def find(source: str | Path, *, progress: Progress | None = None) -> Found:
    """A data set whose annotations are not read yet.

    Raises:
        UserError: there is none.
    """
    if str(source) == "cppe5":
        from detrlab.data import datasets

        return _in_store(
            Folder.scan(datasets.downloaded(datasets.CPPE5, progress=progress)), "cppe5"
        )
    if str(source).startswith(HUB):
        return _on_hub(str(source), progress)
    if not str(source).strip():
        raise UserError(
            f"no data is named: give a folder, a file, a zip, or one of {', '.join(BUILT_IN)}"
        )
    path = Path(source).expanduser()
    if path.is_dir():
        store = _scan(path)
        root = _data_folder(path.resolve())
        # If the folder of the annotation files was named, the one around it is meant.
        alone = not store.refused and not any(map(is_image, store.names))
        if root != path.resolve() and alone and any(n.endswith(".json") for n in os.listdir(path)):
            store = _scan(root)
            return _in_store(store, root.name)
        return _in_store(store, path.resolve().name)
    if path.is_file():
        return _in_file(path)
    raise UserError(
        f"no data at {str(source)!r}: there is no such folder, file or built-in set{_nearest(path)}"
    )


def _in_store(store: Store, name: str) -> Found:
    return Found(store, lambda: _read_store(store, name))


def _on_hub(source: str, progress: Progress | None) -> Found:
    folder = downloaded(source, progress=progress)
    store, read = _in_store(Folder.scan(folder), folder.name.rpartition("-")[0])

    def with_notes() -> RawData:
        data = read()
        return replace(data, notes=(*notes_of(folder), *data.notes))

    return Found(store, with_notes)


def _scan(path: Path) -> Folder:
    return Folder.scan(path, follow_links=os.environ.get("DETRLAB_LINKS") == "follow")


def _data_folder(folder: Path) -> Path:
    """The data's own folder: the one around a folder that is named like one of annotations."""
    return folder.parent if folder.name.lower() in _ANNOTATION_FOLDERS else folder


def _nearest(path: Path) -> str:
    """What a mistyped path may mean."""
    while not path.parent.is_dir():
        path = path.parent
    try:
        names = [entry for entry in os.listdir(path.parent) if not entry.startswith(".")]
    except OSError:
        names = []
    here = path.parent == Path()
    if close := difflib.get_close_matches(path.name, [*names, *BUILT_IN * here], n=1):
        return f", did you mean {str(path.parent / close[0])!r}?"
    if here:
        return f"; built in: {', '.join(BUILT_IN)}"
    return f"; {str(path.parent)!r} has no {path.name!r}"


def _in_file(path: Path) -> Found:
    extension = path.suffix.lower()
    if extension == ".zip":
        return _in_store(Archive.scan(path), path.stem)
    if extension == ".parquet":
        return _on_hub(f"{HUB}{path}", None)
    if extension in (".json", ".yaml", ".yml"):
        root = _data_folder(path.parent) if extension == ".json" else path.parent
        store = _scan(root)
        name = path.relative_to(root).as_posix()
        if name not in store.names:
            raise UserError(f"{path} is a link that leaves its folder, or a hidden file: copy it")
        return Found(store, lambda: _read_named(store, name))
    if extension in (".gz", ".tgz", ".tar", ".rar", ".7z", ".xz"):
        hint = "unpack it first"
    elif extension in (".xml", ".txt") or is_image(path.name):
        hint = f"give the folder of the whole data set, such as {str(path.parent)!r}"
    else:
        hint = "give a folder, a COCO .json, a YOLO data.yaml or a .zip"
    raise UserError(f"{path} is not a kind of file that holds a data set: {hint}")


def _read_named(store: Store, name: str) -> RawData:
    """The one annotation file that was asked for."""
    notes = tuple(filter(None, [links_note(store)]))
    if not name.lower().endswith(".json"):
        splits = tuple(read_yolo(store, name))
        return RawData(store.root.resolve().name, splits, notes=notes)
    split = read_coco(store, name, "")
    assert split is not None
    return RawData(posixpath.splitext(posixpath.basename(name))[0], (split,), notes=notes)


def _read_store(store: Store, name: str) -> RawData:
    """The first format that fits.

    COCO, YOLO with a yaml, Pascal VOC, YOLO without a yaml, metadata.jsonl, shards, parquet.
    """
    findings = Findings()
    splits, notes = _coco_splits(store, findings)
    pages = voc_files(store)
    if splits and pages:
        notes.append(
            f"the COCO JSON is read; {len(pages):,} XML files beside it are not, such as {pages[0]}"
        )
    elif not splits:
        description = yolo_yaml(store)
        if description is not None:
            splits = read_yolo(store, description)
        elif pages:
            splits = read_voc(store)
        elif yolo_folders(store):
            splits = read_yolo(store, None)
        elif lines := metadata_files(store):
            splits, notes = read_metadata(store, lines)
        elif isinstance(store, Folder) and any(n.lower().endswith(".tar") for n in store.names):
            splits = read_shards(store)
        elif isinstance(store, Folder) and any(n.endswith(".parquet") for n in store.names):
            return _on_hub(f"{HUB}{store.root}", None).read()
    if not splits:
        raise UserError(_nothing_found(store))
    if len(splits) > 1:
        unnamed = [split.source for split in splits if not split.name]
        notes += [f"not used, its name does not mention a split: {source}" for source in unnamed]
        splits = [split for split in splits if split.name]
    notes += filter(None, [links_note(store)])
    return RawData(name, tuple(splits), findings, tuple(notes))


def _nothing_found(store: Store) -> str:
    """Why no format fits, as precisely as possible."""
    looked = "COCO JSON, YOLO's data.yaml or labels, Pascal VOC XML, metadata.jsonl and parquet"
    reason = "holds no data set of a supported format" if store.names else "is empty"
    if images := sum(map(is_image, store.names)):
        reason = f"holds {images:,} images and no annotations of a supported format"
    if others := sorted(name for name in store.names if name.lower().endswith(_NOT_READ)):
        reason += f" ({len(others):,} files such as {others[0]} are not supported)"
    elif images:
        looked += "; name the folder that holds both images and annotations"
    links = links_note(store)
    return f"{store.root} {reason}: looked for {looked}" + f"; {links}" * bool(links)


def _coco_splits(store: Store, findings: Findings) -> tuple[list[RawSplit], list[str]]:
    """The COCO file of each split, and what was decided about the files.

    A broken file that is named after a split is a finding; another one is a note.
    """
    names = sorted(name for name in store.names if name.lower().endswith(".json"))
    names = [name for name in names if not OTHER_TASKS.search(posixpath.basename(name))]
    if len(names) > MAX_JSON_FILES:  # LabelMe and others have one JSON file for each image
        names = [name for name in names if _COCO_NAME.search(posixpath.basename(name))]
        names = names[:MAX_JSON_FILES]
    claims: dict[str, list[tuple[str, RawSplit]]] = {}
    broken: list[tuple[str, str, UserError]] = []
    for name in names:
        split = split_of(name)
        try:
            raw = read_coco(store, name, split, required=False)
        except UserError as error:
            broken.append((split, name, error))
            continue
        if raw is not None:
            claims.setdefault(split, []).append((name, raw))
    if not claims and broken:
        raise broken[0][2]
    notes = []
    for split, name, problem in broken:
        if split and split not in claims:
            findings.add("file-broken", split, name, None, None, str(problem))
        else:
            notes.append(str(problem))
    splits = []
    for split, found in claims.items():
        if not split and len(claims) > 1:
            notes.append(f"not used, its name does not mention a split: {found[0][0]}")
            continue
        # The official name wins over others.
        official = [entry for entry in found if "instances" in posixpath.basename(entry[0])]
        if len(found) > 1 and (not split or len(official) != 1):
            which = f"for {split!r}" if split else "and none is called train or val"
            files = ", ".join(name for name, _ in found[:5])
            raise UserError(
                f"{store.root} holds several COCO files {which} ({files}): name one of them, or "
                "keep only one there"
            )
        splits.append((official if len(found) > 1 else found)[0][1])
    return splits, notes
