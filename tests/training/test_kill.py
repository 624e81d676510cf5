"""The short form of benchmarks/kill_test.py, in a process of its own because it forks."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "kill_test.py"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
def test_killed_trainings_end_as_if_they_had_not_been(tmp_path):
    out = tmp_path / "result.md"
    command = [sys.executable, str(SCRIPT), "--trainings", "3", "--seed", "5"]
    result = subprocess.run([*command, "--output", str(out)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    text = out.read_text()
    assert "3 trainings of 3 epochs got SIGKILL" in text
    assert "got SIGKILL 0 times" not in text
