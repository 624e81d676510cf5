"""How fast this machine multiplies, and how many multiplications a step asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

SIDE = 2048


def matrix_product() -> tuple[Callable[[], Any], float]:
    """A call that multiplies two large float32 matrices, and its multiply-adds."""
    a, b = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    return lambda: a @ b, float(SIDE**3)


def multiply_adds(call: Callable[[], Any]) -> float:
    """Multiply-adds of all convolutions and matrix products in a call, backward ones included.

    Deformable sampling is left out: it is a twentieth of one percent to one percent.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    # The plain form of attention is made of the products that the counter knows.
    with _Products() as products, sdpa_kernel(SDPBackend.MATH):
        call()
    return products.total


class _Products(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.total = 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            # The formulas count a multiplication and its addition as two.
            self.total += formula(*args, **(kwargs or {}), out_val=result) / 2
        return result
