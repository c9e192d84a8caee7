"""The pictures of the documentation are what the code draws today."""

import numpy as np
import pytest
from PIL import Image

from tools import gallery

pytestmark = pytest.mark.once

FOLDER = gallery.ROOT / "docs" / "pictures"


@pytest.mark.parametrize("name", gallery.PICTURES)
def test_a_picture_is_what_the_code_draws(name, tmp_path):
    pytest.importorskip("skimage")
    kept, drawn = FOLDER / f"{name}.jpg", gallery.draw(name, tmp_path)
    assert kept.stat().st_size < 100_000
    pixels = [np.asarray(Image.open(path).convert("RGB"), "int16") for path in (kept, drawn)]
    assert pixels[0].shape == pixels[1].shape
    # A pixel more or less at a mask's border, as between backends; another mask is far more.
    assert np.abs(pixels[0] - pixels[1]).mean() < 0.5


def test_no_picture_is_left_that_nothing_draws():
    drawn = {f"{name}.jpg" for name in gallery.PICTURES}
    assert {path.name for path in FOLDER.iterdir()} - drawn <= {"flow.svg"}
