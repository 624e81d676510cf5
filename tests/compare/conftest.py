import pytest

from compare_cases import write_data


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A small COCO folder that no test changes."""
    return write_data(tmp_path_factory.mktemp("data") / "rectangles")
