"""Kernels are compiled once, kept on disk, and found by other processes."""

import os
import subprocess
import sys

PROGRAM = """
import numpy as np
from detrlab.ops import kernels
from detrlab.ops.compiling import compile_on_disk
print(compile_on_disk(kernels.compile_forward, np.float32, 4, 2).cache_hits)
"""


def test_of_two_processes_one_compiles(tmp_path):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "TMPDIR": str(tmp_path)}

    def start():
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM], env=environment, stdout=subprocess.PIPE, text=True
        )

    together = [start(), start()]
    hits = sorted(int(process.communicate()[0]) for process in together)
    assert hits == [0, 1]
    assert int(start().communicate()[0]) == 1
