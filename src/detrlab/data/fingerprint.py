"""The fingerprint of a data set: whether two runs trained on the same images and annotations."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detrlab.data import DataSet


def fingerprint(data: DataSet) -> str:
    """SHA-256 of the classes, image ids, file names, sizes and annotations of both splits.

    Folders do not count: a copy of the data on another machine has the same fingerprint.
    """
    digest = hashlib.sha256()
    for table in (data.train, data.val):
        names = [Path(table.file(i)).name for i in range(len(table))]
        words = [table.classes, table.category_ids, table.image_ids.tolist(), names]
        digest.update(json.dumps(words, ensure_ascii=False).encode())
        columns = (table.sizes, table.starts, table.boxes, table.labels, table.crowd, table.areas)
        for column in columns:
            digest.update(column.tobytes())
    return digest.hexdigest()
