"""Files: what one backend writes, every backend reads, with the same masks."""

import importlib.util
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_sam
from tests.tiny import photograph, randomize, tiny_backbone, tiny_segmenter

ROOT = Path(__file__).resolve().parents[2]
PHOTO = photograph((90, 140))
PROMPTS = {"points": [[[[40, 50]], [[90, 20]]]], "labels": [[[1], [1]]]}
# torch's files are read by both others, theirs by torch: no pair shows more than these.
OTHERS = ("jax", "tensorflow") if keras.backend.backend() == "torch" else ("torch",)


def masks_of(segmenter):
    return segmenter.predict({"images": [PHOTO], **PROMPTS}, verbose=0)["masks"]


def close(actual, expected, tolerance=1e-5):
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


@pytest.fixture(scope="module")
def written(tmp_path_factory, segmenter):
    """A folder with everything that a segmenter and its parts can be written to."""
    folder = tmp_path_factory.mktemp("written")
    segmenter.save(folder / "segmenter.keras")
    segmenter.backbone.save(folder / "backbone.keras")
    segmenter.image_encoder.save(folder / "encoder.keras")
    segmenter.save_weights(folder / "model.weights.h5")
    segmenter.save_to_preset(folder / "preset")
    config = keras.saving.serialize_keras_object(segmenter)
    (folder / "config.json").write_text(json.dumps(config))
    np.savez(folder / "inputs.npz", photo=PHOTO, points=PROMPTS["points"], labels=PROMPTS["labels"])
    np.savez(
        folder / "expected.npz",
        masks=masks_of(segmenter),
        embeddings=segmenter.encode([PHOTO])["image_embeddings"],
    )
    return folder


# --- on one backend ---


def test_segmenter_file_gives_the_same_model(segmenter, written):
    loaded = keras.saving.load_model(written / "segmenter.keras")
    assert type(loaded) is keras_sam.SAMImageSegmenter
    config = json.dumps(segmenter.get_config())
    assert json.loads(json.dumps(loaded.get_config())) == json.loads(config)
    same_weights(loaded, segmenter)
    np.testing.assert_array_equal(masks_of(loaded), masks_of(segmenter))


@pytest.mark.once
def test_what_is_not_a_weight_is_in_the_file_too(tmp_path):
    backbone = tiny_backbone(drop_path_rate=0.2, layer_norm_epsilon=1e-4, pixel_mean=(1, 2, 3))
    segmenter = keras_sam.SAMImageSegmenter(backbone, mask_threshold=0.25)
    segmenter.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.mask_threshold == 0.25
    assert loaded.preprocessor is None
    assert loaded.image_encoder.get_config() == backbone.image_encoder.get_config()
    assert loaded.image_encoder.get_layer("block_2").drop_path.rate == pytest.approx(0.2)


def test_backbone_and_encoder_files_give_the_same_parts(segmenter, written):
    backbone = keras.saving.load_model(written / "backbone.keras")
    same_weights(backbone, segmenter.backbone)
    assert type(backbone) is keras_sam.SAMBackbone
    masks = masks_of(keras_sam.SAMImageSegmenter(backbone, segmenter.preprocessor))
    np.testing.assert_array_equal(masks, masks_of(segmenter))
    encoder = keras.saving.load_model(written / "encoder.keras")
    same_weights(encoder, segmenter.image_encoder)
    assert type(encoder) is keras_sam.ViTDetBackbone


def test_weights_file_fits_a_model_of_the_same_config(segmenter, written):
    other = keras.saving.deserialize_keras_object(json.loads((written / "config.json").read_text()))
    randomize(other, 99)
    other.load_weights(written / "model.weights.h5")
    same_weights(other, segmenter)


def test_parts_inside_a_model_of_the_users_own(tmp_path):
    """Our layers as layers of another functional model, through a file."""
    encoder = keras_sam.SAMPromptEncoder(
        hidden_size=8, image_embedding_size=(3, 5), input_image_size=(48, 80)
    )
    decoder = keras_sam.SAMMaskDecoder(
        hidden_size=8, intermediate_dim=12, num_heads=2, iou_head_hidden_dim=8
    )
    image = keras.Input((3, 5, 8))
    points, labels = keras.Input((None, 2)), keras.Input((None,), dtype="int32")
    outputs = decoder(image_embeddings=image, **encoder(points=points, labels=labels))
    model = keras.Model([image, points, labels], outputs)
    randomize(model, 1)
    model.save(tmp_path / "own.keras")
    loaded = keras.saving.load_model(tmp_path / "own.keras")
    rng = np.random.default_rng(0)
    inputs = [
        rng.standard_normal((2, 3, 5, 8)).astype("float32"),
        rng.uniform(0, 48, (2, 4, 2)).astype("float32"),
        np.array([[1, 0, 1, -1], [1, 1, -1, -10]], "int32"),
    ]
    expected, actual = model(inputs), loaded(inputs)
    for name in ("masks", "iou_pred"):
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(actual[name]), keras.ops.convert_to_numpy(expected[name])
        )


@pytest.mark.parametrize(
    "given",
    [
        {"boxes": (1, 1, 2, 2)},  # one prompt alone, of the model's four
        # as KerasHub's models take them
        pytest.param({"points": (1, 3, 2), "labels": (1, 3)}, marks=pytest.mark.once),
        # several objects: the axis P stays
        pytest.param({"boxes": (1, 5, 4)}, marks=pytest.mark.once),
        {"points": (1, 2, 3, 2), "labels": (1, 2, 3), "masks": (1, 2, 28, 36, 1)},  # and masks
    ],
)
def test_segmenter_inside_a_model_of_the_users_own(segmenter, tmp_path, given):
    rng = np.random.default_rng(0)
    shapes = {"images": (1, *segmenter.image_shape), **given}
    inputs = {name: rng.uniform(0, 1, shape).astype("float32") for name, shape in shapes.items()}
    symbols = {name: keras.Input(x.shape[1:], name=name) for name, x in inputs.items()}
    model = keras.Model(symbols, segmenter(symbols))
    model.save(tmp_path / "own.keras")
    expected = segmenter(inputs)
    for own in (model, keras.saving.load_model(tmp_path / "own.keras")):
        outputs = own(inputs)
        assert sorted(outputs) == ["iou_pred", "masks"]
        for name, x in expected.items():
            assert own.output[name].shape[1:] == tuple(x.shape[1:])
            close(*(keras.ops.convert_to_numpy(y) for y in (outputs[name], x)))


PARTS = ("image_encoder", "prompt_encoder", "mask_decoder")
TARGET = {"masks": [np.pad(np.ones((2, 30, 40), "uint8"), [(0, 0), (40, 20), (60, 40)])]}


def trainable(segmenter):
    return [v.path for v in segmenter.trainable_variables]


@pytest.mark.once
@pytest.mark.parametrize(
    "frozen",
    [
        ("image_encoder", "prompt_encoder"),  # the decoder alone is trained
        ("mask_decoder",),  # a layer that is not in the backbone's graph
        PARTS,  # nothing is
    ],
)
def test_what_is_frozen_stays_so_in_a_file_and_not_in_a_preset(frozen, tmp_path):
    segmenter = tiny_segmenter()
    segmenter.freeze(*frozen)
    segmenter.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert trainable(loaded) == trainable(segmenter)
    segmenter.save_to_preset(tmp_path / "preset")
    segmenter.unfreeze(*frozen)
    for path in ("preset", "model.keras"):
        preset = keras_sam.SAMImageSegmenter.from_preset(tmp_path / path)
        assert trainable(preset) == trainable(segmenter)
        assert all(getattr(preset, part).trainable for part in PARTS)


def test_training_goes_on_from_a_file_with_the_optimizers_state(tmp_path, recwarn):
    segmenter = tiny_segmenter()
    segmenter.freeze("image_encoder", "prompt_encoder")
    segmenter.compile(optimizer=keras.optimizers.Adam(1e-3))
    data = {"images": [PHOTO], **PROMPTS}
    segmenter.fit(data, TARGET, verbose=0)
    segmenter.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert not [w for w in recwarn if "optimizer" in str(w.message)]
    assert int(loaded.optimizer.iterations) == 1
    before = [np.array(v) for v in loaded.image_encoder.weights]
    for model in (segmenter, loaded):
        model.fit(data, TARGET, verbose=0)
    close(masks_of(loaded), masks_of(segmenter))
    for variable, old in zip(loaded.image_encoder.weights, before, strict=True):
        np.testing.assert_array_equal(np.array(variable), old)


@pytest.mark.parametrize(
    "policy", [pytest.param("mixed_bfloat16", marks=pytest.mark.once), "bfloat16"]
)
def test_dtype_policy_is_in_the_file(tmp_path, policy):
    segmenter = tiny_segmenter(dtype=policy)
    segmenter.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.image_encoder.get_layer("block_0").dtype_policy.name == policy
    assert loaded.mask_decoder.dtype_policy.name == policy
    assert {v.path: v.dtype for v in loaded.weights} == {v.path: v.dtype for v in segmenter.weights}
    same_weights(loaded, segmenter)


@pytest.mark.once
def test_weights_file_of_another_model_is_refused(written):
    deeper = tiny_segmenter(num_layers=4)
    wanted = "must hold what a SAMImageSegmenter of the same config saved.*could not be loaded"
    with pytest.raises(ValueError, match=wanted):
        deeper.load_weights(written / "model.weights.h5")


def test_weights_of_a_trainer_and_of_another_size_are_read_as_the_message_says(segmenter, tmp_path):
    trainer = keras_sam.training.SAMTrainer(segmenter)
    trainer.save_weights(tmp_path / "trainer.weights.h5")
    other = tiny_segmenter(seed=3)
    with pytest.raises(ValueError, match=r"`segmenter.load_checkpoint\(path\)` reads"):
        other.load_weights(tmp_path / "trainer.weights.h5")
    other.load_checkpoint(tmp_path / "trainer.weights.h5")
    same_weights(other, segmenter)
    larger = tiny_segmenter(image_shape=(128, 160, 3))
    larger.load_checkpoint(tmp_path / "trainer.weights.h5")
    same_weights(larger, segmenter.at_image_shape((128, 160)))
    segmenter.save_weights(tmp_path / "model.weights.h5")
    with pytest.raises(ValueError, match=r"`trainer.segmenter.load_checkpoint\(path\)` reads"):
        trainer.load_weights(tmp_path / "model.weights.h5")


def same_weights(actual, expected):
    actual, expected = ({v.path: v for v in model.weights} for model in (actual, expected))
    assert actual.keys() == expected.keys()
    for path, values in expected.items():
        np.testing.assert_array_equal(as_floats(actual[path]), as_floats(values), err_msg=path)


def as_floats(variable):
    return keras.ops.convert_to_numpy(keras.ops.cast(variable, "float32"))


# --- across backends ---

READER = """
    import json, sys
    import numpy as np
    import keras_sam
    import keras
    folder, out = sys.argv[1:]
    inputs = np.load(folder + "/inputs.npz")
    batch = {"images": inputs["photo"][None], **{k: inputs[k] for k in ("points", "labels")}}

    def masks(segmenter):
        return segmenter.predict(batch, verbose=0)["masks"]

    whole = keras.saving.load_model(folder + "/segmenter.keras")
    with open(folder + "/config.json") as file:
        rebuilt = keras.saving.deserialize_keras_object(json.load(file))
    rebuilt.load_weights(folder + "/model.weights.h5")
    from_parts = keras_sam.SAMImageSegmenter(
        keras.saving.load_model(folder + "/backbone.keras"), whole.preprocessor
    )
    preset = keras_sam.SAMImageSegmenter.from_preset(folder + "/preset")
    encoder = keras.saving.load_model(folder + "/encoder.keras")
    frames = whole.preprocessor.image_converter(batch["images"])
    np.savez(
        out,
        backend=keras.backend.backend(),
        keras_file=masks(whole),
        weights_and_config=masks(rebuilt),
        backbone_file=masks(from_parts),
        preset=masks(preset),
        encoder_file=encoder.predict(frames, verbose=0),
    )
    """


@pytest.mark.parametrize("other", OTHERS)
def test_another_backend_reads_every_file(other, written, tmp_path):
    if importlib.util.find_spec(other) is None:
        pytest.skip(f"{other} is not installed")
    command = [sys.executable, "-c", textwrap.dedent(READER), str(written), f"{tmp_path}/out.npz"]
    environment = {**os.environ, "KERAS_BACKEND": other, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    actual, expected = dict(np.load(tmp_path / "out.npz")), np.load(written / "expected.npz")
    assert actual.pop("backend") == other
    close(actual.pop("encoder_file"), expected["embeddings"], tolerance=1e-4)
    assert len(actual) == 4
    for name, masks in actual.items():
        assert np.isfinite(masks).all(), name
        close(masks, expected["masks"], tolerance=1e-4)
