import numpy as np
from PIL import Image

from detrlab.compare.first_look import COLUMNS, SIDE, write_first_look
from detrlab.data import DataSet
from detrlab.data.shapes import shapes
from detrlab.recipes import RECIPES


def test_the_sheet_shows_the_images_of_the_first_batches(tmp_path):
    train, val = shapes(train=6, val=1)
    path = tmp_path / "look.png"
    write_first_look(DataSet("shapes", train, val), RECIPES["tiny"].data, 0, path)
    sheet = np.asarray(Image.open(path))
    assert sheet.shape == (2 * (SIDE + 8), COLUMNS * (SIDE + 8), 3)
    cells = sheet.reshape(2, SIDE + 8, COLUMNS, SIDE + 8, 3).std(axis=(1, 3, 4)).flatten()
    assert (cells[:6] > 5).all()  # six pictures, then nothing
    assert (cells[6:] == 0).all()
