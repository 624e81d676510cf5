"""How much each detector may train: epochs, images or minutes, and how many epochs that is."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BeforeValidator, PlainSerializer

from detrlab.errors import UserError, did_you_mean

Unit = Literal["epochs", "images", "minutes"]
_UNITS: tuple[Unit, ...] = ("epochs", "images", "minutes")


@dataclass(frozen=True)
class Budget:
    """What every detector may spend.

    A budget becomes a whole number of epochs before training starts, so that the learning rate
    schedule is known and a resumed run is the same run.

    Attributes:
        unit: ``epochs`` and ``images`` give every detector the same number of epochs;
            ``minutes`` gives slow detectors fewer.
        amount: how many of them.
    """

    unit: Unit
    amount: float

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read ``epochs=12``, ``20 minutes``, ``5000 images`` or a plain number of epochs.

        Raises:
            UserError: it is none of these.
        """
        match = re.fullmatch(r"(?:([a-z]+)\s*=)?\s*([\d.,_]+)\s*([a-z]*)", text.strip().lower())
        word, number, after = match.groups() if match else (None, "", "")
        word = word or after or "epochs"
        unit = next((unit for unit in _UNITS if word in (unit, unit[:-1], unit[:3])), None)
        if unit is None:
            raise UserError(f"unknown budget {word!r}{did_you_mean(word, _UNITS)}")
        try:
            amount = float(number.replace(",", "").replace("_", ""))
        except ValueError:
            amount = 0.0
        if not 0 < amount < 1e12 or (word != after and after):
            raise UserError(
                f"budget {text!r} cannot be read: write epochs=12, minutes=20 or images=5000"
            )
        return cls(unit, amount)

    def epochs(self, images_per_epoch: int, seconds_per_epoch: float) -> int:
        """The whole epochs that fit into the budget, at least one.

        Args:
            images_per_epoch: how many images an epoch trains on.
            seconds_per_epoch: how long an epoch takes; only ``minutes`` uses it.
        """
        if self.unit == "epochs":
            return max(1, round(self.amount))
        if self.unit == "images":
            return max(1, math.ceil(self.amount / images_per_epoch))
        return max(1, math.floor(self.amount * 60 / seconds_per_epoch))

    def __str__(self) -> str:
        return f"{self.amount:g} {self.unit}"


def _read(value: object) -> object:
    return Budget.parse(value) if isinstance(value, str) else value


BudgetField = Annotated[Budget, BeforeValidator(_read), PlainSerializer(str)]
"""A budget as a field of a record: written as text, such as ``12 epochs``."""
