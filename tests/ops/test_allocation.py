"""Memory that a pass frees is there for the next one."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
from detrlab.ops.allocation import keep_freed_memory
if "keep" in sys.argv:
    keep_freed_memory()
def use():
    tensors = [torch.zeros(1 << 20) for _ in range(20)]
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*arguments, **environment):
    told = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(told.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_pages_are_not_cleared_again_unless_the_environment_says_so():
    kept, usual = faults("keep"), faults("keep", MALLOC_TRIM_THRESHOLD_="131072")
    if usual < 1000:
        pytest.skip("a C library that gives nothing back")
    assert kept < 0.1 * usual
