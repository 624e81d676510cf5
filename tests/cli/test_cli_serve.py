"""The command ``detrlab serve``: its mistakes, and a whole life of a service."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest
from services import picture_bytes

from detrlab.cli import main


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--max-megabytes", "0"], "--max-megabytes 0"),
        (["--timeout", "inf"], "--timeout inf"),
        (["--waiting", "-1"], "--waiting -1"),
        (["--port", "70000"], "--port 70000"),
        (["no-such-file.safetensors"], "no-such-file.safetensors"),
        (["--host", "no.such.host.invalid", "--port", "0"], "no.such.host.invalid"),
    ],
)
def test_mistakes_are_one_line(flags, words, capsys):
    assert main(["serve", *flags]) == 2
    written = capsys.readouterr().err
    assert words in written
    assert written.count("\n") == 1


def test_a_port_in_use(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", "--port", port]) == 2
    written = capsys.readouterr().err
    assert f"port {port}" in written
    assert "--port" in written


def test_without_the_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve"]) == 2
    assert 'pip install "detrlab[serve]"' in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_it_serves_until_it_is_interrupted(host, tmp_path):
    command = [sys.executable, "-m", "detrlab", "serve", "--host", host, "--port", "0"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            lines = [process.stderr.readline()]
            if host == "0.0.0.0":
                assert "warning" in lines[0]
                lines.append(process.stderr.readline())
            assert f"at http://{host}:" in lines[-1]
            before = set(tmp_path.rglob("*"))  # torch makes an empty folder when it is imported
            port = lines[-1].split(f"{host}:")[1].split()[0]
            request = f"http://127.0.0.1:{port}/predict"
            with urllib.request.urlopen(request, picture_bytes(), timeout=30) as answer:
                assert json.load(answer)["model"] == "deimv2-femto"
            assert set(tmp_path.rglob("*")) == before
        finally:
            process.send_signal(signal.SIGINT)
            rest = process.stderr.read()
        assert process.wait(30) == 0
        assert rest == "ended\n"
