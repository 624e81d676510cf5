"""The committed performance page and the scripts behind it."""

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_page_is_what_the_measurements_say():
    command = [sys.executable, "benchmarks/performance_tables.py"]
    result = subprocess.run([*command, "--check"], cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, f"{result.stdout}{result.stderr}: {' '.join(command)}"
