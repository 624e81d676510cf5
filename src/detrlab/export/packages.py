"""Packages that the extras install."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from detrlab.errors import UserError


def needs(package: str, extra: str = "export") -> Any:
    """Import a package that an extra installs.

    Raises:
        UserError: it is not installed.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise UserError(
            f"{package.split('.')[0]} is needed and cannot be imported ({error}): "
            f'pip install "detrlab[{extra}]"'
        ) from None
