"""How much each detector may train: epochs, images or minutes, and how many epochs that is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, PlainSerializer

from detrlab.errors import UserError

Unit = Literal["epochs", "images", "minutes"]


@dataclass(frozen=True)
class Budget:
    """What every detector may spend: ``minutes`` give slow detectors fewer epochs.

    A budget becomes a whole number of epochs before training starts, so that the learning rate
    schedule is known and a resumed run is the same run.
    """

    unit: Unit
    amount: float

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read ``epochs=12``, or ``12 epochs`` as ``str`` gives it; of images or minutes too.

        Raises:
            UserError: it is none of these.
        """
        unit, _, number = text.partition("=") if "=" in text else text.partition(" ")[::-1]
        try:
            amount = float(number)
        except ValueError:
            amount = 0.0
        units: tuple[Unit, ...] = get_args(Unit)
        for known in units:
            if unit.strip() == known and 0 < amount < math.inf:
                return cls(known, amount)
        raise UserError(
            f"budget {text!r} cannot be read: write epochs=12, minutes=20 or images=5000"
        )

    def epochs(self, images_per_epoch: int, seconds_per_epoch: float) -> int:
        """The whole epochs that fit into the budget, at least one."""
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
