"""Waiting OpenMP threads must sleep, or every program on a busy machine becomes slow."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(("given", "expected"), [(None, "PASSIVE"), ("active", "ACTIVE")])
def test_openmp_threads_wait_passively_unless_the_user_decides(given, expected):
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    if given is not None:
        environment["OMP_WAIT_POLICY"] = given
    code = "import detrlab, os; print(os.environ['OMP_WAIT_POLICY']); detrlab.load; import torch"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "OMP_DISPLAY_ENV": "true"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip().upper() == expected
    # What the OpenMP runtime of torch has read, if it reports it.
    reported = [line for line in done.stderr.splitlines() if "OMP_WAIT_POLICY" in line]
    assert all(expected in line for line in reported), reported
