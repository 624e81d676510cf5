"""Uploads: from the body of a request to pixels. Nothing is trusted, nothing is written to disk."""

from __future__ import annotations

import io
import warnings
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from detrlab.data.images import FORMATS, decode
from detrlab.errors import UserError
from detrlab.serve.line import Limits, Refusal

if TYPE_CHECKING:
    from starlette.requests import Request
    from torch import Tensor

FORM = "multipart/form-data"
RAW = ("image/", "application/octet-stream", "application/x-www-form-urlencoded")
"""Types of a body that is the picture itself; the last is what curl --data-binary says."""
_HOW = "send a picture as the body of the request, or as the one file of a multipart form"


def check_type(request: Request) -> None:
    """Refuse a body that cannot be a picture, before it is read.

    Raises:
        Refusal: 415 for another content type.
    """
    kind = request.headers.get("content-type", RAW[1]).lower()
    if not kind.startswith((FORM, *RAW)):
        raise Refusal(415, f"the content type {kind[:80]!r} is not a picture: {_HOW}")


async def read_body(request: Request, limits: Limits) -> bytes:
    """The picture's bytes, out of the body or out of a multipart form; kept in memory only.

    Raises:
        Refusal: 413 for too many bytes, 400 for an empty or broken body.
    """
    too_large = Refusal(413, f"the upload has more than the {limits.max_bytes:,} bytes allowed")
    if int(request.headers.get("content-length", 0)) > limits.max_bytes:
        raise too_large
    body = bytearray()
    try:
        async for chunk in request.stream():
            if len(body) + len(chunk) > limits.max_bytes:
                raise too_large
            body += chunk
    except ClientDisconnect:
        raise Refusal(400, "the upload was cut off") from None
    data = bytes(body)
    if request.headers.get("content-type", "").lower().startswith(FORM):
        data = await _file_of_form(request, data)
    if not data:
        raise Refusal(400, f"the upload is empty: {_HOW}")
    return data


async def _file_of_form(request: Request, body: bytes) -> bytes:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(request.headers, stream(), max_files=1, max_fields=20)
    parser.spool_max_size = len(body) + 1  # a larger part would go to a temporary file
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise Refusal(400, f"the form cannot be read ({error.message.rstrip('.')})") from None
    for _, value in form.multi_items():
        if isinstance(value, UploadFile):
            return await value.read()
    raise Refusal(400, f"the form holds no file: {_HOW}")


def open_picture(data: bytes, limits: Limits) -> Tensor:
    """The bytes of a picture -> (3, H, W) uint8, RGB, upright.

    Raises:
        Refusal: 415 for an unknown format, 413 for too many pixels, 400 for a damaged file.
    """
    from PIL import Image

    too_large = Refusal(413, f"the picture has more than the {limits.max_pixels:,} pixels allowed")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large images; their size is checked here
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > limits.max_pixels:
                    raise too_large
        return decode(io.BytesIO(data), "the picture")
    except Image.DecompressionBombError:
        raise too_large from None
    except Image.UnidentifiedImageError:
        known = ", ".join(FORMATS)
        raise Refusal(415, f"the upload is not a picture of a known format ({known})") from None
    except UserError as error:
        raise Refusal(400, str(error).rpartition(": ")[0]) from None
    except (OSError, SyntaxError, ValueError) as error:
        raise Refusal(400, f"the picture cannot be read ({error})") from None
