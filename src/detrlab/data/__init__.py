"""Reading data sets: readers fill a table, transforms and batching turn it into batches."""

from detrlab.data.batching import Batch, Loader, batches, num_batches
from detrlab.data.sources import DataSet, open_data, open_whole
from detrlab.data.table import Table
from detrlab.data.transforms import eval_transform

__all__ = [
    "Batch",
    "DataSet",
    "Loader",
    "Table",
    "batches",
    "eval_transform",
    "num_batches",
    "open_data",
    "open_whole",
]
