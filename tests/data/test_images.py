"""Decoding: every mode becomes the right RGB, EXIF follows the annotations, limits hold."""

import io
import os

import numpy as np
import pytest
import torch
from coco_folders import picture
from PIL import Image

from detrlab.data.images import ENDINGS, Names, decode, inspect, read_header
from detrlab.data.store import Folder
from detrlab.errors import UserError


def encoded(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def decoded(data, declared=None):
    return decode(io.BytesIO(data), "x", declared).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "1"])
def test_modes_become_rgb_as_pillow_does(mode):
    image = picture(1, 20, 30).convert(mode)
    expected = np.array(Image.open(io.BytesIO(encoded(image))).convert("RGB"))
    assert (decoded(encoded(image)) == expected).all()


@pytest.mark.parametrize("kind", ["BMP", "GIF", "WEBP", "TIFF", "PPM", "JPEG"])
def test_formats(kind):
    data = encoded(picture(1, 20, 30), kind)
    assert (decoded(data) == np.array(Image.open(io.BytesIO(data)).convert("RGB"))).all()


def test_cmyk():
    data = encoded(picture(1, 20, 30).convert("CMYK"), "JPEG")
    assert read_header(io.BytesIO(data), "x").mode == "CMYK"
    assert np.abs(decoded(data).astype(int) - np.array(picture(1, 20, 30))).mean() < 12


def test_sixteen_bits_keep_the_upper_eight():
    values = np.arange(600, dtype=np.uint16).reshape(20, 30) * 100
    for kind in ("PNG", "TIFF"):
        pixels = decoded(encoded(Image.fromarray(values), kind))
        assert (pixels[..., 0] == values >> 8).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_orientation_as_pillow_applies_it(orientation, kind):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(2, 20, 30), kind, exif=exif)
    expected = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert (decoded(data) == expected).all()
    header = read_header(io.BytesIO(data), "x")
    assert header.shown(None) == expected.shape[:2]


def test_declared_size_tells_which_picture_was_annotated():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(picture(2, 20, 30), "JPEG", exif=exif)
    assert decoded(data, (20, 30)).shape == (20, 30, 3)  # boxes drawn on the stored picture
    assert decoded(data, (30, 20)).shape == (30, 20, 3)  # boxes drawn on the upright one
    assert decoded(data, (77, 88)).shape == (30, 20, 3)  # fits neither
    stored = np.array(Image.open(io.BytesIO(data)))
    assert (decoded(data, (20, 30)) == stored).all()


def test_broken_exif_is_no_exif():
    data = bytearray(encoded(picture(2, 20, 30), "JPEG", exif=b"Exif\0\0garbage garbage"))
    assert decoded(bytes(data)).shape == (20, 30, 3)


def test_inspection_tells_whole_from_cut_files():
    for kind in ("JPEG", "PNG"):
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        data = encoded(Image.fromarray(noise), kind)
        whole = inspect(data, "x", 17)
        assert whole.problem == ""
        assert whole.thumb.shape == (17, 17)
        cut = inspect(data[: len(data) * 2 // 3], "x", 17)
        assert cut.cut_short
        assert "x cannot be read" in cut.problem
    assert inspect(b"garbage", "x", 17).header is None


def test_inspection_sees_animations():
    frames = [picture(i, 20, 20) for i in range(3)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert inspect(data, "x", 17).animated
    assert not inspect(encoded(frames[0], "GIF"), "x", 17).animated


def test_programs_in_disguise_are_not_run():
    """EPS starts an interpreter; PDF and fonts have parsers of their own."""
    for start in (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"%PDF-1.4\n", b"8BPS\0\1"):
        with pytest.raises(UserError, match="not an image of a known format"):
            decode(io.BytesIO(start + b"x" * 100), "photo.jpg")


def test_no_more_than_the_largest_file_is_read(tmp_path, monkeypatch):
    data = encoded(picture(1, 20, 30))
    (tmp_path / "x.png").write_bytes(data)
    monkeypatch.setattr("detrlab.data.images.MAX_BYTES", len(data) - 1)
    with pytest.raises(UserError, match=f"more than {len(data) - 1:,} bytes"):
        decode(io.BytesIO(data), "x")
    with pytest.raises(UserError, match="bytes, more than 9"):
        Folder.scan(tmp_path).open("x.png", limit=9)


def test_names_survive_any_file_system():
    texts = ["a.jpg", "", "ü/ß.png", os.fsdecode(b"\xff\xfe.jpg"), "x" * 5000]
    names = Names(texts)
    assert [names[i] for i in range(len(texts))] == texts
    assert [names.select(np.array([4, 0]))[i] for i in range(2)] == [texts[4], texts[0]]
    assert len(Names([])) == 0


def test_result_is_contiguous_uint8():
    image = decode(io.BytesIO(encoded(picture(1, 5, 7))), "x")
    assert image.dtype == torch.uint8
    assert image.shape == (3, 5, 7)
    assert image.is_contiguous()
    assert ".jpeg" in ENDINGS
