"""Nothing from a file reaches the terminal as a control character."""

import pytest
from PIL import Image

from detrlab.cli import main
from detrlab.cli.common import printable, say


@pytest.mark.parametrize("text", ["a\x1b[2Jb", "a\nb", "a\x9b1mb", "a\u202eb", "a\udcffb"])
def test_control_characters_are_escaped(text, capsys):
    assert printable(text).isprintable()
    assert printable(text).startswith("a\\")
    say(f"one\n{text}")
    assert capsys.readouterr().err.replace("\n", "").isprintable()


def test_letters_stay_as_they_are():
    assert printable("Maske 口罩 [red] \\x1b") == "Maske 口罩 [red] \\x1b"


def test_predict_escapes_file_names(tmp_path, capsys):
    image = tmp_path / "a\x1b[2J.png"
    Image.new("RGB", (64, 64)).save(image)
    assert main(["predict", str(image), "--output", str(tmp_path)]) == 0
    written = capsys.readouterr().out
    assert "\\x1b[2J.png" in written
    assert "\x1b" not in written
