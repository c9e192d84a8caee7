"""SAM 2's files, Meta's and transformers', into our variables and back."""

import json
import re

import numpy as np
import pytest

from keras_sam import converters
from keras_sam.converters import sam2
from keras_sam.presets import convert_checkpoint, read_preset
from tests.parity.sam2_models import ENCODER, meta_model, state_of, transformers_model

pytestmark = pytest.mark.once

KEPT = ("hidden_size", "num_blocks", "num_heads", "global_attention_layer_indices", "window_sizes")
VIDEO = ("Sam2VideoModel", "Sam2VideoConfig")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What transformers saves of its model for images."""
    path = tmp_path_factory.mktemp("sam2") / "images"
    transformers_model().save_pretrained(path)
    return path


def arrays(source):
    return {k: np.asarray(v) for k, v in read_preset(source).arrays.items()}


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


@pytest.mark.parametrize("version", ["2", "2.1"])  # the latter has more weights for videos
def test_metas_files_keep_all_but_the_memory(version):
    state = state_of(meta_model(version))
    family, found, _ = converters.rename(state)
    assert family is sam2.FAMILY
    memory = {k for k in state if any(re.fullmatch(p, k) for p in sam2.MEMORY)}
    assert ("no_obj_embed_spatial" in memory) == (version == "2.1")
    back = converters.to_meta(found, family)
    assert back.keys() == state.keys() - memory
    assert_same(back, {k: state[k] for k in back})
    # What is left of a file for images gives the same.
    assert_same(converters.rename(back).arrays, found)


def test_metas_code_takes_what_we_write():
    model = meta_model()
    state = state_of(model)
    written = converters.to_meta(converters.rename(state).arrays, sam2.FAMILY)
    import torch

    tensors = {name: torch.tensor(np.asarray(values)) for name, values in written.items()}
    report = model.load_state_dict(tensors, strict=False)
    assert not report.unexpected_keys
    assert all(any(re.fullmatch(p, k) for p in sam2.MEMORY) for k in report.missing_keys)


def test_round_trip_through_every_format(folder, tmp_path):
    wanted = read_preset(folder)
    assert wanted.task["registered_name"] == "keras_sam>SAM2ImageSegmenter"
    path = folder
    for name, layout in [
        ("a", "keras_sam"),
        ("b.safetensors", "meta"),
        ("c", "transformers"),
    ]:
        path = convert_checkpoint(path, tmp_path / name, layout)
        assert_same(arrays(path), arrays(folder))
        for part in KEPT:
            assert read_preset(path).encoder[part] == ENCODER[part]
        assert read_preset(path).encoder["image_shape"] == [160, 160, 3]
    import transformers

    model, report = transformers.Sam2Model.from_pretrained(path, output_loading_info=True)
    assert not any(report.values()), report
    expected = state_of(transformers_model())
    for key, values in state_of(model).items():
        np.testing.assert_array_equal(values, expected[key], err_msg=key)


def test_a_folder_of_the_model_for_videos(tmp_path):
    transformers_model(*VIDEO).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "sam2_video"
    found = read_preset(tmp_path)
    assert not [name for name in found.arrays if converters.part_of(name) is None]
    assert found.encoder["num_blocks"] == ENCODER["num_blocks"]


def test_released_sizes_need_no_config():
    shapes = {
        "patch_embedding/kernel": (7, 7, 3, 112),
        "position_embedding/background": (1, 14, 14, 112),
        "position_embedding/window": (1, 8, 8, 112),
        "block_0/mlp/dense_0/kernel": (112, 448),
        "neck/conv_0/kernel": (1, 1, 112, 256),
        **{f"block_{i}/norm1/gamma": (112,) for i in range(24)},
        **{f"block_{i}/shortcut/kernel": (1, 2) for i in (2, 5, 21)},
    }
    encoder = sam2.infer_parts(shapes)["image_encoder"]["config"]
    assert encoder["num_blocks"] == [2, 3, 16, 3] and encoder["num_heads"] == 2
    assert encoder["global_attention_layer_indices"] == [12, 16, 20]
    shapes["block_24/norm1/gamma"] = (896,)
    with pytest.raises(ValueError, match="no released model has stages of"):
        sam2.infer_parts(shapes)


def test_missing_image_weights_are_refused_and_memory_alone_is_named(folder):
    state = state_of(meta_model())
    memory = {k: x for k, x in state.items() if k.startswith("memory_")}
    with pytest.raises(ValueError, match="SAM 2's memory for videos without its image model"):
        converters.convert(memory)
    found = read_preset(folder)
    del state["image_encoder.trunk.blocks.3.attn.qkv.weight"]
    from keras_sam.presets.assign import assign
    from tests.parity.sam2_models import our_encoder

    encoder = our_encoder(found.arrays)
    with pytest.raises(ValueError, match=r"Missing, not in the file \(1\): block_3/attention/qkv"):
        assign(
            encoder.weights,
            converters.rename(state).arrays,
            lambda *_: pytest.fail("nothing may be set"),
            (r"(prompt_encoder|mask_decoder)/.*",),
        )
