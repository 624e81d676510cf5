import errno
import hashlib
import json
import os

import pytest

from detrlab import files
from detrlab.errors import UserError


def test_a_written_file_is_whole_and_alone(tmp_path):
    path = tmp_path / "deep" / "a.bin"
    files.write_bytes(path, b"first")
    files.write_bytes(path, b"second")
    assert path.read_bytes() == b"second"
    assert [p.name for p in path.parent.iterdir()] == ["a.bin"]
    assert files.sha256(path) == hashlib.sha256(b"second").hexdigest()


def test_json_comes_back_and_refuses_nan(tmp_path):
    files.write_json(tmp_path / "a.json", {"ä": [1, 2.5]})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"ä": [1, 2.5]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "a.json", float("nan"))


def test_a_failing_block_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.bin"
    files.write_bytes(path, b"old")

    def interrupted():
        with files.replacing(path) as temporary:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


@pytest.mark.parametrize(
    ("code", "word"),
    [(errno.ENOSPC, "disk is full"), (errno.EACCES, "permission"), (errno.EROFS, "read-only")],
)
def test_a_full_disk_is_one_clear_message_and_the_old_file_stays(tmp_path, monkeypatch, code, word):
    path = tmp_path / "a.bin"
    files.write_bytes(path, b"old")

    def fail(_descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match=word) as caught:
        files.write_bytes(path, b"new")
    assert str(path) in str(caught.value)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    (tmp_path / ".last.safetensors.123-4.tmp").write_bytes(b"half")
    (tmp_path / "last.safetensors").write_bytes(b"whole")
    assert files.remove_leftovers(tmp_path) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.safetensors"]
