"""COCO run lengths, against pycocotools and Meta's code."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco

from keras_sam import masks as tools
from keras_sam.masks import rle
from tests.mask_samples import mask_stacks
from tests.meta_oracle import import_segment_anything

pytestmark = pytest.mark.once


def coco_encode(stack):
    """The oracle: a stack's run lengths by pycocotools, with the string as str."""
    fortran = np.asfortranarray(stack.transpose(1, 2, 0).astype("uint8"))
    return [
        {"size": [int(n) for n in one["size"]], "counts": one["counts"].decode("ascii")}
        for one in coco.encode(fortran)
    ]


def test_encode_equals_pycocotools():
    for stack in mask_stacks(300):
        assert tools.encode_rle(stack) == coco_encode(stack)


def test_uncompressed_equals_metas_loop():
    import_segment_anything()
    import torch
    from segment_anything.utils.amg import mask_to_rle_pytorch

    for stack in mask_stacks(150, seed=1):
        expected = mask_to_rle_pytorch(torch.from_numpy(np.ascontiguousarray(stack)))
        assert tools.encode_rle(stack, compressed=False) == expected


def test_decode_undoes_encode():
    for stack in mask_stacks(300, seed=2):
        for compressed in (True, False):
            encoded = tools.encode_rle(stack, compressed)
            decoded = tools.decode_rle(encoded)
            assert decoded.dtype == bool
            np.testing.assert_array_equal(decoded, stack)
            np.testing.assert_array_equal(tools.decode_rle(encoded[0]), stack[0])


@pytest.mark.parametrize("seed", range(3))
def test_a_part_is_decoded_as_the_whole_is(seed):
    rng = np.random.default_rng(seed)
    for stack in mask_stacks(100, seed=2 + seed):
        (_, h, w) = stack.shape
        (y1, y2), (x1, x2) = (np.sort(rng.choice(n + 1, 2, replace=False)) for n in (h, w))
        encoded = tools.encode_rle(stack)
        part = tools.decode_rle(encoded, crop_box=[x1, y1, x2, y2])
        np.testing.assert_array_equal(part, stack[:, y1:y2, x1:x2] != 0)


def test_a_part_outside_the_picture_is_refused():
    with pytest.raises(
        ValueError, match=r"crop_box=\(0, 0, 3, 2\), and run lengths of size \(2, 2\)"
    ):
        tools.decode_rle({"size": [2, 2], "counts": [4]}, crop_box=[0, 0, 3, 2])


def test_decode_equals_pycocotools_where_runs_are_empty_or_the_string_is_bytes():
    counts = [0, 3, 0, 2, 4, 0, 1, 5]  # runs of length 0 join their neighbours
    size = [5, 3]
    expected = coco.decode(coco.frPyObjects({"size": size, "counts": counts}, *size))
    ours = tools.decode_rle({"size": size, "counts": counts})
    np.testing.assert_array_equal(ours, expected)
    string = coco.encode(np.asfortranarray(expected))["counts"]
    assert isinstance(string, bytes)
    np.testing.assert_array_equal(tools.decode_rle({"size": size, "counts": string}), expected)


def test_counts_larger_than_any_mask_in_memory_survive_the_string():
    # A 60,000 x 60,000 slide: 3.6e9 pixels, more than 32 bits with a sign hold.
    counts = [2**31 - 5, 7, 1_000_000_000, 1, 60_000**2 - 2**31 - 1_000_000_003]
    long = {"size": [60_000, 60_000], "counts": counts}
    short = tools.compress_rle(long)
    assert isinstance(short["counts"], str)
    assert tools.decompress_rle(short) == long


def test_compressing_is_the_same_as_encoding_compressed():
    for stack in mask_stacks(60, seed=3):
        compressed, plain = tools.encode_rle(stack), tools.encode_rle(stack, compressed=False)
        assert [tools.compress_rle(one) for one in plain] == compressed
        assert [tools.decompress_rle(one) for one in compressed] == plain
        assert json.loads(json.dumps(compressed)) == compressed


def test_one_mask_gives_one_dict_and_any_integer_counts_as_inside():
    mask = np.array([[0, 255, 0], [7, 0, -1]])
    assert tools.encode_rle(mask) == tools.encode_rle(mask[None])[0]
    assert tools.encode_rle(mask) == tools.encode_rle(mask != 0)
    assert tools.encode_rle(np.zeros((0, 3, 4), bool)) == []


def test_views_in_any_memory_order_are_encoded_as_they_look():
    stack = next(iter(mask_stacks(3, seed=4)))
    big = np.random.default_rng(0).random((40, 30, 3)) < 0.5
    for view in (big.transpose(2, 0, 1), big.transpose(2, 1, 0)[:, ::2, ::-1], stack[::-1]):
        assert tools.encode_rle(view) == coco_encode(view)


def test_true_is_true_whatever_byte_it_is():
    levels = np.random.default_rng(0).choice([0, 1, 255], (2, 9, 16)).astype("uint8")
    assert tools.encode_rle(levels.view(bool)) == coco_encode(levels > 0)


def test_large_stacks_are_encoded_in_chunks_without_a_seam(monkeypatch):
    stack = np.random.default_rng(0).random((7, 30, 17)) < 0.4
    whole = tools.encode_rle(stack)
    for pixels in (1, 3 * 30 * 17):  # one mask at a time, three and a rest
        monkeypatch.setattr(rle, "_CHUNK_PIXELS", pixels)
        assert tools.encode_rle(stack) == whole


@pytest.mark.parametrize(
    "shape",
    [
        (2, 3, 70_000),  # columns that 16 bits do not count
        (70_000, 3, 2),  # masks that 16 bits do not count
        (300, 3, 300),  # neither in 8 bits
    ],
    ids=str,
)
def test_many_columns_and_many_masks_stay_in_order(shape):
    stack = np.random.default_rng(0).random(shape) < 0.4
    assert tools.encode_rle(stack) == coco_encode(stack)


def test_a_part_of_a_picture_of_forty_thousand_million_pixels_is_encoded_and_read():
    mask = np.random.default_rng(0).random((40, 60)) > 0.5
    place = [199_900, 150_000, 199_960, 150_040]
    encoded = tools.encode_rle(mask, crop_box=place, original_size=(200_000, 200_000))
    assert encoded["size"] == [200_000, 200_000]
    assert np.array_equal(tools.decode_rle(encoded, crop_box=place), mask)


def test_a_crop_is_encoded_as_a_mask_of_the_whole_image():
    rng = np.random.default_rng(0)
    edges = {"none": 0, "some": 0}
    for _ in range(300):
        h0, w0 = rng.integers(1, 25, 2)
        (x1, x2), (y1, y2) = sorted(rng.integers(0, w0 + 1, 2)), sorted(rng.integers(0, h0 + 1, 2))
        if x1 == x2 or y1 == y2:
            continue
        crop = rng.random((2, y2 - y1, x2 - x1)) < rng.choice([0.3, 1])
        whole = np.zeros((2, h0, w0), bool)
        whole[:, y1:y2, x1:x2] = crop
        edges["some" if y2 == h0 or x2 == w0 else "none"] += 1
        encoded = tools.encode_rle(crop, crop_box=[x1, y1, x2, y2], original_size=(h0, w0))
        assert encoded == coco_encode(whole)
    assert min(edges.values()) > 20  # crops at the image's edges and inside were both met


BAD_MASKS = [
    (np.zeros(5, bool), "must have shape"),  # no image
    (np.zeros((2, 3, 4, 5), bool), "must have shape"),  # one axis too many
    (np.zeros((0, 4), bool), "at least one pixel"),  # an empty image
    (np.zeros((3, 4), "float32"), "logits > mask_threshold"),  # not thresholded yet
]


@pytest.mark.parametrize(("masks", "words"), BAD_MASKS)
def test_what_is_no_mask_is_refused(masks, words):
    with pytest.raises(ValueError, match=words):
        tools.encode_rle(masks)


BAD_RLES = [
    ({"size": [2, 2]}, "`size` and `counts`"),  # half of it
    ([[0, 1]], "`size` and `counts`"),  # a mask where run lengths are expected
    ({"size": [2, 2, 3], "counts": [4]}, "two positive integers"),  # three sides
    ({"size": [0, 2], "counts": [0]}, "two positive integers"),  # no pixels
    ({"size": [2, 2], "counts": [1, 2]}, "sum=3"),  # a pixel short
    ({"size": [2, 2], "counts": [5]}, "sum=5"),  # a pixel too many
    ({"size": [2, 2], "counts": [5, -1]}, "smallest=-1"),  # fills the size with a negative run
    ({"size": [2, 2], "counts": [1.5, 2.5]}, "list of ints"),  # no whole numbers
    ({"size": [2, 2], "counts": [[4]]}, "list of ints"),  # nested
    ({"size": [2, 2], "counts": "4\n"}, "COCO's compressed string"),  # a character below '0'
    ({"size": [2, 2], "counts": "~"}, "COCO's compressed string"),  # a character above 'o'
    ({"size": [2, 2], "counts": "T"}, "COCO's compressed string"),  # cut off within a number
    ({"size": [2, 2], "counts": ""}, "COCO's compressed string"),  # empty
    ({"size": [2, 2], "counts": "ü"}, "COCO's compressed string"),  # not ASCII
    ({"size": [2, 2], "counts": "o" * 9 + "0"}, "COCO's compressed string"),  # a number too long
]


@pytest.mark.parametrize(("one", "words"), BAD_RLES)
def test_malformed_run_lengths_are_refused(one, words):
    with pytest.raises(ValueError, match=words):
        tools.decode_rle(one)


def test_decoding_refuses_nothing_and_different_sizes():
    with pytest.raises(ValueError, match="at least one"):
        tools.decode_rle([])
    small, large = tools.encode_rle(np.ones((2, 3), bool)), tools.encode_rle(np.ones((3, 2), bool))
    with pytest.raises(ValueError, match="one size"):
        tools.decode_rle([small, large])


BAD_CROPS = [
    ({"crop_box": [0, 0, 2, 2]}, "together"),  # where, but not of what
    ({"original_size": (4, 4)}, "together"),  # of what, but not where
    ({"crop_box": [0, 0, 3, 2], "original_size": (4, 4)}, "as large as the masks"),  # too wide
    ({"crop_box": [3, 0, 5, 2], "original_size": (4, 4)}, "inside the image"),  # leaves it right
    ({"crop_box": [-1, 0, 1, 2], "original_size": (4, 4)}, "inside the image"),  # and left
]


@pytest.mark.parametrize(("where", "words"), BAD_CROPS)
def test_crops_that_do_not_fit_are_refused(where, words):
    with pytest.raises(ValueError, match=words):
        tools.encode_rle(np.ones((2, 2), bool), **where)
