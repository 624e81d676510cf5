"""The short form of benchmarks/kill_test.py, in a process of its own because it forks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "kill_test.py"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
def test_killed_commands_end_as_if_they_had_not_been(tmp_path):
    out = tmp_path / "result.md"
    command = [sys.executable, str(SCRIPT), "--kills", "16", "--verbs", "train", "push"]
    result = subprocess.run([*command, "--output", str(out)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    tallies = json.loads(out.with_suffix(".json").read_text())
    assert len(tallies) == 7
    assert all(sum(tally["kills"].values()) for tally in tallies)
    assert "Every one ended with the result of the undisturbed command" in out.read_text()
