"""Tar files in WebDataset's layout: an image and a json file of the same name side by side.

Training reads members by their place in the tar file, so that any image can come next: the order
is the same as of the same images in a folder.
"""

from __future__ import annotations

import io
import json
import posixpath
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detrlab.data.coco import from_document
from detrlab.data.locate import is_image, split_of
from detrlab.data.raw import RawSplit
from detrlab.data.store import Folder, Shards
from detrlab.data.table import Table
from detrlab.errors import UserError

CATEGORIES = "categories.json"
"""The classes of the tar files in the same folder, or in folders below it."""

IN_A_SHARD = 2000
"""Images of a tar file that is written."""

MAX_RECORD = 64 << 20


def read_shards(folder: Folder) -> list[RawSplit]:
    """One split for each word (train, val, test) in the names of the tar files and their folders.

    The json of an image is COCO's record of it (``id``, ``height``, ``width``) with its
    ``annotations``. The image's file is the one beside the json, whatever the record says.

    Raises:
        UserError: a tar file is damaged, a json is not as described, or classes are missing.
    """
    store = Shards.scan(folder)
    images = {posixpath.splitext(name)[0]: name for name in sorted(store.names) if is_image(name)}
    parts: dict[str, dict[str, Any]] = {}
    first: dict[str, str] = {}
    for name in sorted(store.names):
        stem, ending = posixpath.splitext(name)
        if ending.lower() != ".json" or stem not in images:
            continue
        tar = store.tars[store.members[name][0]]
        split = split_of(tar)
        if split not in parts:
            first[split] = tar
            parts[split] = {"images": [], "annotations": [], **_categories(folder, tar)}
        record = _parsed(store.read(name, MAX_RECORD), f"{store.root / name}")
        annotations = record.pop("annotations", [])
        image = record.get("id", len(parts[split]["images"]) + 1)
        parts[split]["images"].append({**record, "id": image, "file_name": images[stem]})
        for each in annotations if isinstance(annotations, list) else [annotations]:
            own = {"image_id": image} if isinstance(each, dict) else {}
            parts[split]["annotations"].append({**each, **own} if own else each)
    return [from_document(part, store, first[split], split) for split, part in parts.items()]


def _categories(folder: Folder, tar: str) -> dict[str, Any]:
    place = tar
    while place:
        place = posixpath.dirname(place)
        name = posixpath.join(place, CATEGORIES)
        if name in folder.names:
            return _parsed(folder.read(name, MAX_RECORD), f"{folder.root / name}")
    raise UserError(
        f"{folder.root / tar} has no classes: put a file {CATEGORIES} beside it with "
        '{"categories": [{"id": 1, "name": "..."}]}'
    )


def _parsed(text: bytes, where: str) -> dict[str, Any]:
    from pydantic_core import from_json

    try:
        record = from_json(text)
    except ValueError as error:
        raise UserError(f"{where} is not valid JSON ({error})") from None
    if not isinstance(record, dict):
        raise UserError(f"{where} should hold an object, not {type(record).__name__}")
    return record


def write_shards(
    folder: Path,
    table: Table,
    names: list[str],
    image: Callable[[int], bytes],
    done: Callable[[], None],
) -> None:
    """Write a split as tar files and its classes beside them.

    Args:
        folder: of the split, which is made.
        table: the split.
        names: of the image files; the number of the image becomes the member's name.
        image: the bytes of each.
        done: called after each image.
    """
    folder.mkdir(parents=True)
    document = table.coco_ground_truth()
    text = json.dumps({"categories": document["categories"]}, ensure_ascii=False)
    (folder / CATEGORIES).write_text(text, encoding="utf-8")
    for start in range(0, len(names), IN_A_SHARD):
        with tarfile.open(folder / f"{start // IN_A_SHARD:06d}.tar", "x") as archive:
            for i in range(start, min(start + IN_A_SHARD, len(names))):
                rows = slice(int(table.starts[i]), int(table.starts[i + 1]))
                record = {**document["images"][i], "file_name": names[i]}
                record["annotations"] = document["annotations"][rows]
                ending = posixpath.splitext(names[i])[1].lower()
                for end, data in ((ending, image(i)), (".json", json.dumps(record).encode())):
                    info = tarfile.TarInfo(f"{i:09d}{end}")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
                done()
