"""What all tests share: quiet threads, generated pictures, and the photographs beside."""

import functools
import os
from pathlib import Path

import pytest

# Before torch is imported: on few cores, spinning OpenMP threads slow every test down.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("DETRLAB_BFLOAT16", "insist")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real photographs beside the checkout; skips the test where there is none."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the photographs do not lie beside the checkout (../shared/data)")
    return folder


@pytest.fixture(scope="session", autouse=True)
def shapes_are_drawn_once():
    """Drawing the 800 pictures of ``shapes`` takes three seconds, and many tests read them."""
    from detrlab.data import shapes

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "table", functools.cache(shapes.table))
        yield


@pytest.fixture
def plain_ops():
    """Deformable attention in plain PyTorch: its kernels would compile anew for every size."""
    from detrlab.ops.deformable import use

    with use("reference"):
        yield
