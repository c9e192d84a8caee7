"""Into the formats of other libraries and back, bit by bit, and the masks they then predict."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

import keras_sam
from keras_sam.presets import convert_checkpoint
from keras_sam.presets.write import save_safetensors
from tests import checkpoints
from tests.tiny import tiny_segmenter

pytestmark = pytest.mark.once

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def meta(tmp_path_factory):
    """Meta's model, and the file it saved."""
    import_torch = pytest.importorskip("torch")
    model = checkpoints.meta_model()
    path = tmp_path_factory.mktemp("meta") / "sam.pth"
    import_torch.save(model.state_dict(), path)
    return model, path


def arrays(source):
    return {k: np.asarray(v) for k, v in keras_sam.presets.read_preset(source).arrays.items()}


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_round_trip_through_every_format_is_bit_exact(meta, tmp_path):
    _, path = meta
    wanted = keras_sam.presets.read_preset(path)
    steps = [
        ("a.safetensors", "meta"),
        ("b", "transformers"),
        ("c", "keras_sam"),
        ("d", "transformers"),
        ("e.safetensors", "meta"),
    ]
    for name, layout in steps:
        path = convert_checkpoint(path, tmp_path / name, layout)
        assert path == str(tmp_path / name)
        assert_same(arrays(path), {k: np.asarray(v) for k, v in wanted.arrays.items()})
        for part in ("hidden_size", "num_heads", "global_attention_layer_indices", "window_size"):
            assert keras_sam.presets.read_preset(path).encoder[part] == wanted.encoder[part]


def test_meta_s_code_loads_what_we_write(meta, tmp_path):
    model, path = meta
    from safetensors.torch import load_file

    state = load_file(convert_checkpoint(path, tmp_path / "a.safetensors", "meta"))
    other = checkpoints.meta_model(seed=9)
    assert other.load_state_dict(state, strict=True)
    for found, wanted in zip(
        checkpoints.meta_prediction(other), checkpoints.meta_prediction(model), strict=True
    ):
        np.testing.assert_array_equal(found, wanted)


def test_transformers_loads_what_we_write(meta, tmp_path):
    model, path = meta
    import transformers

    folder = convert_checkpoint(path, tmp_path / "a", "transformers")
    other, report = transformers.SamModel.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    found = checkpoints.hugging_face_prediction(other.eval())
    checkpoints.assert_same_masks(found, checkpoints.meta_prediction(model))


def test_a_model_trained_here_goes_to_both(tmp_path):
    segmenter = tiny_segmenter(image_shape=(112, 112, 3))
    segmenter.save_to_preset(tmp_path / "ours")
    wanted = arrays(tmp_path / "ours")
    for name, layout in [("m.safetensors", "meta"), ("t", "transformers"), ("o", "keras_sam")]:
        convert_checkpoint(tmp_path / "ours", tmp_path / name, layout)
        assert_same(arrays(tmp_path / name), wanted)
    # Two decoder heads are in no shape: a config, or a header, knows them.
    for name in ("m.safetensors", "t", "o"):
        found = keras_sam.presets.read_preset(tmp_path / name).parts["mask_decoder"]["config"]
        assert found["num_heads"] == 2
    again = keras_sam.SAMImageSegmenter.from_preset(tmp_path / "o")
    assert again.preprocessor.get_config() == segmenter.preprocessor.get_config()


def test_what_other_libraries_have_no_model_for(segmenter, meta, tmp_path):
    segmenter.save_to_preset(tmp_path / "ours")
    with pytest.raises(ValueError, match="square frames only. Received: 112 x 144"):
        convert_checkpoint(tmp_path / "ours", tmp_path / "t", "transformers")
    segmenter.image_encoder.save_to_preset(tmp_path / "encoder")
    with pytest.raises(ValueError, match="image encoder alone"):
        convert_checkpoint(tmp_path / "encoder", tmp_path / "t", "transformers")
    with pytest.raises(ValueError, match=r"must end in .safetensors"):
        convert_checkpoint(meta[1], tmp_path / "a.pth", "meta")
    with pytest.raises(ValueError, match="`layout` must be one of"):
        convert_checkpoint(meta[1], tmp_path / "a", "onnx")
    assert not (tmp_path / "t").exists()


def test_the_shipped_preset_goes_to_meta_s_names_and_back(tmp_path):
    """Its encoder has no tables of relative positions, so no shape tells its heads or windows."""
    path = convert_checkpoint("sam_tiny_demo", tmp_path / "demo.safetensors", "meta")
    wanted, found = (
        keras_sam.presets.read_preset("sam_tiny_demo"),
        keras_sam.presets.read_preset(path),
    )
    assert found.parts == wanted.parts
    assert found.task["config"] == wanted.task["config"]
    assert found.preprocessor["config"] == wanted.preprocessor["config"]
    assert_same(arrays(path), arrays("sam_tiny_demo"))
    names = safe_open(path, "np").keys()
    assert "image_encoder.patch_embed.proj.weight" in names and len(names) == len(wanted.arrays)


def test_every_setting_survives_in_the_header(tmp_path):
    segmenter = tiny_segmenter(activation="relu", drop_path_rate=0.25, initializer_range=0.03)
    segmenter.mask_threshold = 0.5
    segmenter.save_to_preset(tmp_path / "ours")
    path = convert_checkpoint(tmp_path / "ours", tmp_path / "m.safetensors", "meta")
    again = keras_sam.SAMImageSegmenter.from_preset(path)
    assert again.backbone.get_config() == segmenter.backbone.get_config()
    assert again.preprocessor.get_config() == segmenter.preprocessor.get_config()
    assert again.mask_threshold == 0.5
    segmenter.image_encoder.save_to_preset(tmp_path / "encoder")
    path = convert_checkpoint(tmp_path / "encoder", tmp_path / "e.safetensors", "meta")
    encoder = keras_sam.ViTDetBackbone.from_preset(path)
    assert encoder.get_config() == segmenter.image_encoder.get_config()


@pytest.mark.parametrize("metadata", ["{", "[]", '{"registered_name": "keras_sam>SAMBackbone"}'])
def test_a_damaged_header_is_an_error(metadata, meta, tmp_path):
    from keras_sam.converters import CONFIG_KEY, to_meta

    tensors = to_meta(keras_sam.presets.read_preset(meta[1]).arrays)
    save_safetensors(tmp_path / "a.safetensors", tensors, {CONFIG_KEY: metadata})
    if metadata == "{":  # not ours: the tensors are read as in any other file
        assert keras_sam.presets.read_preset(tmp_path / "a.safetensors").encoder["num_heads"] == 3
        return
    with pytest.raises(ValueError, match="must be that of a SAM|not as a preset's must be"):
        keras_sam.presets.read_preset(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("vision", "others", "ours"),
    [
        (0.03, 0.05, (0.03, 0.05)),
        (0.03, 0.02, (0.03, 0.02)),
        (1e-10, 0.05, (None, 0.05)),  # what transformers has where nothing is given
    ],
)
def test_the_initial_spread_goes_to_transformers_and_back(vision, others, ours, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = checkpoints.hugging_face_model().config
    config.initializer_range, config.vision_config.initializer_range = others, vision
    transformers.SamModel(config).save_pretrained(tmp_path / "theirs")
    path = tmp_path / "theirs" / "config.json"
    saved = json.loads(path.read_text())
    saved["initializer_range"], saved["vision_config"]["initializer_range"] = others, vision
    path.write_text(json.dumps(saved))  # transformers leaves out what equals its defaults
    convert_checkpoint(tmp_path / "theirs", tmp_path / "ours")
    segmenter = keras_sam.SAMImageSegmenter.from_preset(tmp_path / "ours", load_weights=False)
    found = segmenter.image_encoder.initializer_range, segmenter.mask_decoder.initializer_range
    assert found == ours
    assert segmenter.prompt_encoder.initializer_range == others
    convert_checkpoint(tmp_path / "ours", tmp_path / "back", "transformers")
    again = transformers.SamConfig.from_pretrained(tmp_path / "back")
    assert (again.initializer_range, again.vision_config.initializer_range) == (others, vision)
    convert_checkpoint(tmp_path / "back", tmp_path / "m.safetensors", "meta")
    found = keras_sam.presets.read_preset(tmp_path / "m.safetensors")
    assert found.encoder["initializer_range"] == ours[0]


def test_half_precision_stays_half(meta, tmp_path):
    import torch

    state = {k: v.half() for k, v in meta[0].state_dict().items()}
    torch.save(state, tmp_path / "half.pth")
    convert_checkpoint(tmp_path / "half.pth", tmp_path / "a.safetensors", "meta")
    assert_same(arrays(tmp_path / "a.safetensors"), arrays(tmp_path / "half.pth"))
    size = (tmp_path / "a.safetensors").stat().st_size
    assert size < 0.6 * meta[1].stat().st_size


def test_safetensors_are_read_by_the_library(tmp_path):
    from safetensors.numpy import load_file

    rng = np.random.default_rng(0)
    tensors = {
        "b": rng.standard_normal((3, 5)).astype("f4"),
        "a": rng.standard_normal((2, 3, 4)).astype("f2").T,
        "scalar": np.float64(3),
        "empty": np.zeros((0, 4), "f4"),
        "big endian": rng.standard_normal(4).astype(">f4"),
    }
    save_safetensors(tmp_path / "x.safetensors", tensors, {"format": "pt"})
    found = load_file(tmp_path / "x.safetensors")
    for name, value in tensors.items():
        np.testing.assert_array_equal(found[name], value)
    header = (tmp_path / "x.safetensors").read_bytes()[:8]
    assert int.from_bytes(header, "little") % 8 == 0


def test_a_model_is_no_preset(tmp_path):
    with pytest.raises(ValueError, match=r"a name, an address or a path.*save_to_preset"):
        convert_checkpoint(tiny_segmenter(), tmp_path / "a.safetensors", "meta")
