"""What all tests share: quiet threads, and the photographs beside the checkout."""

import os
from pathlib import Path

import pytest

# Before torch is imported: on few cores, spinning OpenMP threads slow every test down.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real photographs beside the checkout; skips the test where there is none."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the photographs do not lie beside the checkout (../shared/data)")
    return folder


@pytest.fixture
def plain_ops():
    """Deformable attention in plain PyTorch: its kernels would compile anew for every size."""
    from detrlab.ops.deformable import use

    with use("reference"):
        yield
