"""A checksum of a data set's annotations, to tell whether two runs use the same data."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detrlab.data.sources import DataSet


def data_fingerprint(data: DataSet) -> str:
    """SHA-256 of the annotations and file names of the splits ``train`` and ``val``.

    It does not depend on the folder of the images.
    """
    digest = hashlib.sha256()
    for table in (data.train, data.val):
        names = [Path(table.file(i)).name for i in range(len(table))]
        head = [table.classes, table.category_ids, table.image_ids.tolist(), names]
        digest.update(json.dumps(head, ensure_ascii=False).encode())
        columns = (table.sizes, table.starts, table.boxes, table.labels, table.crowd, table.areas)
        for column in columns:
            digest.update(column.tobytes())
    return digest.hexdigest()
