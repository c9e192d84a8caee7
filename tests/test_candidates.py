"""Masks that wait for suppression: what is put away comes back, from memory and from disk."""

import tempfile
import tracemalloc

import numpy as np
import pytest

from keras_sam.mask_generator import candidates
from keras_sam.mask_generator.candidates import WaitingMasks, pack_mask
from keras_sam.masks import encode_rle

pytestmark = pytest.mark.once

SIZE = (60, 90)  # height, width


def circle(box):
    """Bool, the pixels of a box: what an object is like."""
    x1, y1, x2, y2 = box
    y, x = np.mgrid[: y2 - y1, : x2 - x1]
    return np.hypot(y - (y2 - y1) / 2, x - (x2 - x1) / 2) < (y2 - y1) / 3


def noise(box, seed=0):
    x1, y1, x2, y2 = box
    return np.random.default_rng(seed).random((y2 - y1, x2 - x1)) > 0.5


def whole(mask, box):
    """The mask of the whole image that shows `mask` in a box, and nothing outside."""
    x1, y1, x2, y2 = box
    image = np.zeros(SIZE, bool)
    image[y1:y2, x1:x2] = mask
    return image


BOXES = [(0, 0, 90, 60), (20, 10, 65, 57), (89, 59, 90, 60), (7, 0, 8, 60), (0, 30, 90, 31)]


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize(
    "make", [circle, noise, lambda box: ~circle(box), lambda box: noise(box) & 0]
)
def test_a_mask_comes_back_as_run_lengths_of_the_image(make, box):
    mask = make(box).astype(bool)
    with WaitingMasks(SIZE) as waiting:
        run_lengths = waiting.add(pack_mask(mask, box, SIZE))
        assert run_lengths() == run_lengths() == encode_rle(whole(mask, box))


def test_an_object_waits_as_run_lengths_and_noise_as_bits():
    box = BOXES[0]
    of_object, of_noise = (pack_mask(make(box), box, SIZE) for make in (circle, noise))
    assert of_object.content.decode() == encode_rle(circle(box))["counts"]
    assert len(of_noise.content) == 60 * 90 / 8 < len(encode_rle(noise(box))["counts"])


def test_many_wait_in_a_file_that_goes_with_them(monkeypatch, tmp_path):
    monkeypatch.setattr(candidates, "_WAITING_IN_MEMORY", 3000)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    box = BOXES[0]
    masks = [circle(box), *(noise(box, seed) for seed in range(9))]
    with WaitingMasks(SIZE) as waiting:
        given = [waiting.add(pack_mask(mask, box, SIZE)) for mask in masks]
        waiting._file.fileno()  # of a file, or an error
        for number in np.random.default_rng(0).permutation(len(masks)):
            assert given[number]() == encode_rle(masks[number])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="closed file"):
        given[0]()


def test_what_waits_in_a_file_takes_no_memory(monkeypatch):
    monkeypatch.setattr(candidates, "_WAITING_IN_MEMORY", 3000)
    size = (500, 500)
    box = (0, 0, 500, 500)
    packed = pack_mask(np.random.default_rng(0).random(size) > 0.5, box, size)
    with WaitingMasks(size) as waiting:
        waiting.add(packed)
        tracemalloc.start()
        given = [waiting.add(packed) for _ in range(50)]
        grown = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert given[-1]() == given[0]()
    assert grown < 50 * 1000 < 50 * len(packed.content) / 30


def test_few_need_no_disk(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    box = BOXES[1]
    with WaitingMasks(SIZE) as waiting:
        given = [waiting.add(pack_mask(noise(box, seed), box, SIZE)) for seed in range(20)]
        assert [run_lengths() for run_lengths in given] == [
            encode_rle(whole(noise(box, seed), box)) for seed in range(20)
        ]
