"""Embeddings on disk: equal to the encoder's, made once, never half, never another model's."""

import json

import keras
import numpy as np
import pytest
from PIL import Image

from keras_sam.files import whole_file
from keras_sam.training import CachedEmbeddings, MaskFolder, ObjectBatches, SAMTrainer, cached
from tests.test_files import full_disk
from tests.tiny import photograph
from tests.training.steps import disc, small_segmenter

SIZES = ((60, 90), (80, 50), (48, 80))


@pytest.fixture(scope="module")
def segmenter():
    return small_segmenter()


@pytest.fixture
def source(tmp_path):
    """Three photographs of different sizes with one object each."""
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for i, size in enumerate(SIZES):
        Image.fromarray(photograph(size, i)).save(tmp_path / "images" / f"{i}.png")
        mask = disc(size, 25, 30, 12) * 255
        Image.fromarray(mask).save(tmp_path / "masks" / f"{i}.png")
    return MaskFolder(tmp_path / "images", tmp_path / "masks")


def make(segmenter, source, folder, **settings):
    return CachedEmbeddings(segmenter, source, folder, verbose=0, **settings)


class Count:
    """A segmenter that counts the images it encodes."""

    def __init__(self, segmenter, fail_after=None):
        self._segmenter, self.encoded, self._fail_after = segmenter, 0, fail_after

    def __getattr__(self, name):
        return getattr(self._segmenter, name)

    def encode(self, images, batch_size):
        if self._fail_after is not None and self.encoded >= self._fail_after:
            raise KeyboardInterrupt
        self.encoded += len(images)
        return self._segmenter.encode(images, batch_size)


@pytest.mark.parametrize("dtype, places", [("float16", 11), ("bfloat16", 8)])
def test_embeddings_are_the_encoders_rounded_to_nearest(segmenter, source, tmp_path, dtype, places):
    cache = make(segmenter, source, tmp_path / "cache", dtype=dtype, batch_size=2)
    assert len(cache) == 3
    for i in range(3):
        features, targets = cache[i]
        embedding = features["image_embeddings"]
        image, wanted_targets = source[i]
        wanted = segmenter.encode([image])["image_embeddings"][0]
        assert embedding.dtype == "float32"
        np.testing.assert_allclose(embedding, wanted, rtol=2.0**-places, atol=1e-6)
        np.testing.assert_array_equal(targets, wanted_targets)
        assert cache.path(i) == str(source.path(i))


def test_bfloat16_rounds_ties_to_even():
    # 1 + 2^-8 is halfway between two bfloat16 numbers, and so is 1 + 3 * 2^-8.
    numbers = np.float32([1.0, 1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8 - 2**-12, 0.0, -3.5])
    stored = cached._stored(numbers, "bfloat16")
    wanted = np.float32([1.0, 1.0, 1 + 2**-6, -1 - 2**-7, 0.0, -3.5])
    np.testing.assert_array_equal(cached._to_float32(stored, "bfloat16"), wanted)


def test_images_are_encoded_once_whatever_their_order(segmenter, source, tmp_path):
    first, again = Count(segmenter), Count(segmenter)
    make(first, source, tmp_path / "cache")
    turned = list(reversed([source[i] for i in range(3)]))  # not even files
    make(again, source, tmp_path / "cache")
    assert (first.encoded, again.encoded) == (3, 0)
    make(first, turned, tmp_path / "other")
    assert first.encoded == 6
    cache = make(again, turned[:2], tmp_path / "other")
    assert again.encoded == 0
    np.testing.assert_allclose(
        cache[0][0]["image_embeddings"],
        segmenter.encode([source[2][0]])["image_embeddings"][0],
        atol=2e-2,
    )


def test_an_interrupted_cache_goes_on(segmenter, source, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        make(Count(segmenter, fail_after=2), source, tmp_path / "cache")
    again = Count(segmenter)
    assert len(make(again, source, tmp_path / "cache")) == 3
    assert again.encoded == 1


def test_a_full_disk_leaves_whole_embeddings_alone(segmenter, source, tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    make(segmenter, [source[0]], folder)
    before = sorted(p.name for p in folder.iterdir())
    with full_disk(limit=256), pytest.raises(OSError, match="could not be written"):
        make(segmenter, [source[0], source[1]], folder)
    assert sorted(p.name for p in folder.iterdir()) == before
    again = Count(segmenter)
    assert len(make(again, [source[0], source[1]], folder)) == 2
    assert again.encoded == 1


def test_an_embedding_that_was_cut_short_is_made_again(segmenter, source, tmp_path):
    make(segmenter, source, tmp_path / "cache")
    victim = sorted((tmp_path / "cache").glob("*.npy"))[0]
    victim.write_bytes(victim.read_bytes()[:-10])
    again = Count(segmenter)
    cache = make(again, source, tmp_path / "cache")
    assert again.encoded == 1
    assert np.isfinite([cache[i][0]["image_embeddings"] for i in range(3)]).all()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda: {"segmenter": small_segmenter(seed=8)}, "another model:"),
        (lambda: {"dtype": "bfloat16"}, "another dtype:"),
    ],
    ids=["other weights", "another dtype"],
)
def test_embeddings_of_another_model_are_refused(segmenter, source, tmp_path, change, message):
    make(segmenter, source, tmp_path / "cache")
    settings = {"segmenter": segmenter, **change()}
    with pytest.raises(ValueError, match=message):
        make(settings.pop("segmenter"), source, tmp_path / "cache", **settings)


def test_another_preprocessing_is_another_cache(segmenter, source, tmp_path):
    make(segmenter, source, tmp_path / "cache")
    converter = segmenter.preprocessor.image_converter
    before, converter.resample = converter.resample, "nearest"
    try:
        with pytest.raises(ValueError, match="another preprocessing:"):
            make(segmenter, source, tmp_path / "cache")
    finally:
        converter.resample = before


@pytest.mark.parametrize("content", ["[1, 2]", "{", json.dumps({"format": "something else"})])
def test_a_folder_of_something_else_is_refused(segmenter, source, tmp_path, content):
    with pytest.raises(ValueError, match="holds other files"):
        make(segmenter, source, tmp_path)
    with whole_file(tmp_path / "other" / cached.INDEX, text=True) as file:
        file.write(content)
    with pytest.raises(ValueError, match="another format"):
        make(segmenter, source, tmp_path / "other")


def test_a_broken_image_is_named_and_left_out_only_if_asked(segmenter, source, tmp_path):
    path = source.path(1)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"1\.png cannot be read: .*skip_unreadable"):
        make(segmenter, source, tmp_path / "cache")
    with pytest.warns(UserWarning, match=r"1\.png is left out"):
        cache = make(segmenter, source, tmp_path / "cache", skip_unreadable=True)
    assert [cache.path(i) for i in range(len(cache))] == [str(source.path(i)) for i in (0, 2)]
    path.unlink()
    with pytest.raises(ValueError, match=r"1\.png cannot be read: .*No such file"):
        make(segmenter, source, tmp_path / "cache")


def test_values_that_do_not_fit_say_so():
    assert cached._stored(np.float32([1.0, 1e6]), "float16") is None
    assert cached._stored(np.float32([1.0, 1e6]), "bfloat16") is not None
    assert cached._stored(np.float32([1.0, np.nan]), "bfloat16") is None


@pytest.mark.parametrize(
    "settings, message",
    [({"dtype": "float32"}, "'float32'"), ({"batch_size": 0}, "batch_size=0")],
)
def test_bad_settings(segmenter, source, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        make(segmenter, source, tmp_path / "cache", **settings)


@pytest.mark.parametrize("settings", [{"flips": True}, {"scales": (0.5, 2.0)}])
def test_cached_images_cannot_be_augmented(segmenter, source, tmp_path, settings):
    with pytest.raises(ValueError, match="a cache holds only their embeddings"):
        ObjectBatches(make(segmenter, source, tmp_path / "cache"), **settings)


def test_embeddings_need_a_frozen_encoder(segmenter, source, tmp_path):
    data = ObjectBatches(make(segmenter, source, tmp_path / "cache"), prompts="boxes")
    with pytest.raises(ValueError, match=r'freeze\("image_encoder"\)'):
        segmenter.prepare_training(*data[0])


def test_the_cache_gives_what_the_images_give(source, tmp_path):
    segmenter = small_segmenter()
    cache = make(segmenter, source, tmp_path / "cache")
    segmenter.freeze("image_encoder")
    outputs = []
    for data in (source, cache):
        batches = ObjectBatches(data, batch_size=3, prompts="boxes", shuffle=False, seed=1)
        inputs, targets = segmenter.prepare_training(*batches[0])
        masks = keras.ops.convert_to_numpy(segmenter(inputs, training=True)["masks"])
        outputs.append((masks, targets["masks"]))
    (masks, targets), (masks_of_cache, targets_of_cache) = outputs
    assert ("image_embeddings" in inputs) and ("images" not in inputs)
    np.testing.assert_array_equal(targets_of_cache, targets)
    # Half precision has 11 bits.
    np.testing.assert_allclose(masks_of_cache, masks, atol=4e-3 * np.abs(masks).max())


def test_the_trainer_takes_the_cache_too(segmenter, source, tmp_path):
    cache = make(segmenter, source, tmp_path / "cache")
    x, y = ObjectBatches(cache, batch_size=2, shuffle=False)[0]
    assert sorted(x) == ["image_embeddings", "original_sizes"]
    frozen = small_segmenter()
    frozen.freeze("image_encoder")
    trainer = SAMTrainer(frozen)
    prepared, targets = trainer.prepare_training(x, y)
    wanted, wanted_targets = trainer.prepare_training({"images": [source[0][0], source[1][0]]}, y)
    np.testing.assert_array_equal(targets["masks"], wanted_targets["masks"])
    np.testing.assert_array_equal(prepared["targets"], wanted["targets"])
    encoded = frozen.encode_frames(wanted["images"], batch_size=2)
    embeddings = encoded["image_embeddings"]
    np.testing.assert_allclose(prepared["image_embeddings"], embeddings, rtol=1e-3, atol=1e-5)
