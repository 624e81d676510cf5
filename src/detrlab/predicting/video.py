"""Videos and cameras as pictures, and pictures as a video; through PyAV, which is optional."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from detrlab.data.images import MAX_PIXELS
from detrlab.errors import UserError, printable

if TYPE_CHECKING:
    from PIL import Image

VIDEO_ENDINGS = (
    ".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".wmv", ".flv",
    ".3gp", ".ogv",
)  # fmt: skip
"""Extensions that count as videos."""

CAMERA = "camera:"

# Containers only. A playlist would open the files and addresses that it names.
_OPTIONS = {
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,asf,flv,ogg",
    "protocol_whitelist": "file",
}
_CLOCK = 90_000  # ticks a second, as MPEG counts


class Frame(NamedTuple):
    """A picture of a video.

    Attributes:
        pixels: (3, H, W) uint8, RGB, upright.
        time: seconds from the start.
    """

    pixels: Tensor
    time: float


def require_av() -> Any:
    """The package PyAV.

    Raises:
        UserError: it is not installed.
    """
    try:
        import av
    except ImportError:
        raise UserError('videos and cameras need PyAV: pip install "detrlab[video]"') from None
    return av


@contextmanager
def open_video(source: str) -> Iterator[Iterator[Frame]]:
    """The frames of a video file, or of ``camera:`` and its number or device.

    They are decoded as they are asked for.

    Raises:
        UserError: PyAV is not installed, or the video cannot be opened or decoded.
    """
    av = require_av()
    name = printable(source)
    try:
        container = (
            _open_camera(av, source) if source.startswith(CAMERA) else _open_file(av, source)
        )
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{name} cannot be opened as a video: {reason}") from None
    with container:
        if not container.streams.video:
            raise UserError(f"{name} holds no video stream")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        yield _frames(av, container, stream, name)


def _open_file(av: Any, path: str) -> Any:
    return av.open(str(Path(path).absolute()), options=_OPTIONS)


def _open_camera(av: Any, source: str) -> Any:
    device = source.removeprefix(CAMERA)
    if sys.platform.startswith("linux"):
        return av.open(f"/dev/video{device}" if device.isdigit() else device, format="v4l2")
    if sys.platform == "darwin":
        return av.open(device, format="avfoundation", options={"framerate": "30"})
    return av.open(f"video={device}", format="dshow")


def _frames(av: Any, container: Any, stream: Any, name: str) -> Iterator[Frame]:
    seen = 0
    rate = float(stream.average_rate or 25)
    start = None
    try:
        for frame in container.decode(stream):
            if frame.width * frame.height > MAX_PIXELS:
                raise UserError(f"{name} has frames of {frame.width} x {frame.height} pixels")
            start = frame.time if start is None else start
            time = seen / rate if frame.time is None else frame.time - start
            pixels = torch.from_numpy(frame.to_ndarray(format="rgb24"))
            turned = torch.rot90(pixels, round(frame.rotation / 90), (0, 1))
            yield Frame(turned.permute(2, 0, 1).contiguous(), time)
            seen += 1
    except av.FFmpegError as error:
        if not seen:
            raise UserError(f"{name} cannot be decoded: {error.strerror}") from None
        raise UserError(f"{name} is damaged after frame {seen}: {error.strerror}") from None
    if not seen:
        raise UserError(f"{name} holds no frames")


class VideoWriter:
    """Writes pictures as an MP4 with H.264, without sound.

    Args:
        path: the file.

    Raises:
        UserError: PyAV is not installed.
    """

    def __init__(self, path: Path) -> None:
        self._av = require_av()
        self._container = self._av.open(str(path), "w", format="mp4")
        self._stream: Any = None
        self._last = -1

    def add(self, picture: Image.Image, time: float) -> None:
        """Append a picture at a time in seconds; later ones are scaled to the first one's size."""
        if self._stream is None:
            self._stream = self._container.add_stream("libx264", rate=30)
            # H.264 stores colours for blocks of 2 x 2.
            self._stream.width, self._stream.height = (side + side % 2 for side in picture.size)
            self._stream.pix_fmt = "yuv420p"
            self._stream.codec_context.time_base = Fraction(1, _CLOCK)
            self._stream.codec_context.options = {"preset": "veryfast", "crf": "23"}
        frame = self._av.VideoFrame.from_image(picture)
        frame = frame.reformat(self._stream.width, self._stream.height, format="yuv420p")
        self._last = max(round(time * _CLOCK), self._last + 1)
        frame.pts, frame.time_base = self._last, Fraction(1, _CLOCK)
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Finish the file."""
        if self._stream is not None:
            self._container.mux(self._stream.encode())
        self._container.close()
