"""Rename tables know every name of the code they stand for, both ways."""

from pathlib import Path

import numpy as np
import pytest

from keras_sam.converters import (
    Tensor,
    convert,
    format_of,
    keras_tables,
    looks_like,
    read_checkpoint,
    to_meta,
    torch_tables,
)
from keras_sam.converters.tables import CONV, LINEAR, SAME, Row, to_foreign, to_ours
from tests import checkpoints

pytestmark = pytest.mark.once

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"


def of_meta():
    return {k: v.numpy() for k, v in checkpoints.meta_model().state_dict().items()}


def of_hugging_face():
    tensors = checkpoints.hugging_face_model().state_dict()
    tensors.pop(torch_tables.TIED_POSITIONAL)
    return {k: v.numpy() for k, v in tensors.items()}


WRITERS = {
    "Meta": (of_meta, torch_tables.META_ROWS),
    "transformers": (of_hugging_face, torch_tables.transformers_rows()),
    "KerasHub 0.16": (lambda: read(FIXTURES / "keras_hub_0_16"), keras_tables.KERAS_HUB_ROWS),
    "KerasHub 0.32": (lambda: read(FIXTURES / "keras_hub_0_32"), keras_tables.KERAS_HUB_ROWS),
    "KerasCV 0.9": (lambda: read(FIXTURES / "keras_cv_0_9"), keras_tables.KERAS_CV_ROWS),
}


def read(folder):
    return read_checkpoint(folder / "model.weights.h5")


@pytest.mark.parametrize("name", WRITERS)
def test_every_tensor_goes_to_ours_and_back_bit_by_bit(name):
    make, rows = WRITERS[name]
    tensors = make()
    ours = to_ours(tensors, rows)
    assert len(ours) == len(tensors)
    assert not ours.keys() & tensors.keys(), "every name was translated"
    back = to_foreign(ours, rows)
    assert back.keys() == tensors.keys()
    for path, tensor in tensors.items():
        np.testing.assert_array_equal(np.asarray(back[path]), np.asarray(tensor))


@pytest.mark.parametrize("name", WRITERS)
def test_formats_are_told_apart(name):
    make, _ = WRITERS[name]
    tensors = make()
    assert format_of(tensors) == name.split(" ")[0]
    assert format_of({f"wrapper.module.{k}": v for k, v in tensors.items()}) == name.split(" ")[0]


def test_a_table_row_by_row():
    rows = (
        Row("a.{i}.b.{j}.weight", "x_{i}/y_{j}/kernel", LINEAR),
        Row("c{_i}/vars/0", "z_{i}/kernel", CONV),
        Row("d.e", "d/e", SAME),
    )
    tensors = {
        "a.12.b.3.weight": np.ones((2, 5)),
        "c/vars/0": np.ones((2, 3, 4, 5)),
        "c_7/vars/0": np.ones((2, 3, 4, 5)),
        "d.e": np.ones((2, 5)),
        "dxe": np.ones(1),  # the dot is a dot
        "a.x.b.3.weight": np.ones(1),  # not a number
        "c_/vars/0": np.ones(1),  # not a counter
    }
    found = {name: tensor.shape for name, tensor in to_ours(tensors, rows).items()}
    assert found == {
        "x_12/y_3/kernel": (5, 2),
        "z_0/kernel": (4, 5, 3, 2),
        "z_7/kernel": (4, 5, 3, 2),
        "d/e": (2, 5),
        "dxe": (1,),
        "a.x.b.3.weight": (1,),
        "c_/vars/0": (1,),
    }


def test_layouts_are_those_of_the_layers():
    linear = np.arange(6.0).reshape(2, 3)  # torch: (out, in)
    np.testing.assert_array_equal(np.asarray(LINEAR.to_keras(Tensor.of(linear))), linear.T)
    conv = np.arange(120.0).reshape(2, 3, 4, 5)  # torch: (out, in, h, w)
    keras = np.asarray(CONV.to_keras(Tensor.of(conv)))
    assert keras.shape == (4, 5, 3, 2)
    assert keras[1, 2, 0, 1] == conv[1, 0, 1, 2]


def test_a_variable_without_a_name_in_the_other_format_is_an_error():
    with pytest.raises(ValueError, match="no name for these variables: adapter/kernel"):
        to_meta({"adapter/kernel": np.ones(1), "neck_conv1/kernel": np.ones((1, 1, 2, 3))})


def test_transformers_tied_matrix():
    tensors = of_hugging_face()
    _, _, wanted = convert(tensors)
    name = "prompt_encoder/positional_embedding/gaussian_matrix"
    first = tensors[torch_tables.POSITIONAL]
    _, _, both = convert({**tensors, torch_tables.TIED_POSITIONAL: first})
    moved = {k: v for k, v in tensors.items() if k != torch_tables.POSITIONAL}
    _, _, other = convert({**moved, torch_tables.TIED_POSITIONAL: first})
    for found in (both, other):
        assert found.keys() == wanted.keys()
        np.testing.assert_array_equal(np.asarray(found[name]), np.asarray(wanted[name]))
    with pytest.raises(ValueError, match="differ, but are one"):
        convert({**tensors, torch_tables.TIED_POSITIONAL: first + 1})


def test_meta_pixel_statistics_are_taken_over():
    tensors = of_meta()
    mean, std = np.float32([1, 2, 3]).reshape(3, 1, 1), np.float32([4, 5, 6]).reshape(3, 1, 1)
    _, parts, arrays = convert({**tensors, "pixel_mean": mean, "pixel_std": std})
    assert parts["image_encoder"]["config"]["pixel_mean"] == [1, 2, 3]
    assert parts["image_encoder"]["config"]["pixel_std"] == [4, 5, 6]
    assert len(arrays) == len(tensors)


def test_keras_extras_are_left_out():
    tensors = {
        **read(FIXTURES / "keras_hub_0_32"),
        "optimizer/vars/0": np.zeros(()),
        "layers/dropout/seed_generator/vars/0": np.zeros(2, "uint32"),
    }
    _, _, arrays = convert(tensors)
    assert len(arrays) == len(tensors) - 2


OTHERS = [
    ("image_encoder.trunk.pos_embed", "SAM 2"),
    ("vision_encoder.backbone.pos_embed", "transformers' SAM 2"),
    ("cls_token", "plain vision transformer"),
    ("mask_decoder.final_output_upscaling_layers.0.0.weight", "EfficientSAM"),
    ("model.model.0.conv.weight", "a YOLO model"),  # FastSAM's state dict
]


@pytest.mark.parametrize(("name", "title"), OTHERS)
def test_other_models_are_called_by_their_name(name, title):
    assert title in looks_like({name: None})
    with pytest.raises(ValueError, match=f"look like.*{title}"):
        convert({name: np.zeros(3), "other": np.zeros(1)})


def test_what_is_nothing_that_we_know():
    with pytest.raises(ValueError, match="no SAM that this package knows.*Its tensors are: a, b"):
        convert({"b": np.zeros(1), "a": np.zeros(1)})
    assert looks_like(of_meta()) == ""


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("image_encoder.neck.0.weight", None, "neck_conv1/kernel"),
        ("mask_decoder.mask_tokens.weight", None, "mask_decoder/mask_tokens"),
        ("mask_decoder.mask_tokens.weight", (4,), "must have 2 axes.*shape=\\(4,\\)"),
        ("image_encoder.patch_embed.proj.weight", (24, 0, 8, 8), "none of them empty"),
        ("image_encoder.blocks.0.attn.rel_pos_h", (5,), "must have 2 axes"),
        ("image_encoder.blocks.0.attn.rel_pos_h", (9, 8), "tables of relative positions"),
    ],
)
def test_files_that_cannot_tell_their_size(name, shape, message):
    tensors = of_meta()
    if shape is None:
        del tensors[name]
    else:
        tensors[name] = np.zeros(shape, "f4")
    with pytest.raises(ValueError, match=f"(?s)not a complete SAM.*{message}"):
        convert(tensors)


def test_without_relative_tables_released_sizes_are_known_and_others_refused():
    tensors = {k: v for k, v in of_meta().items() if "rel_pos" not in k}
    with pytest.raises(ValueError, match="number of heads, .*load_weights=False.*load_checkpoint"):
        convert(tensors)
    _, parts, _ = convert(tensors, {"image_encoder": {"num_heads": 6, "window_size": 5}})
    assert parts["image_encoder"]["config"]["num_heads"] == 6
    assert parts["image_encoder"]["config"]["use_rel_pos"] is False
    wide = {
        k: np.lib.stride_tricks.as_strided(v, strides=(0,) * v.ndim) for k, v in tensors.items()
    }
    for name in wide:
        if "patch_embed.proj.weight" in name:
            wide[name] = np.broadcast_to(np.float32(0), (768, 3, 16, 16))
    wide = {k: v for k, v in wide.items() if "blocks.1" not in k and "blocks.2" not in k}
    for i in range(12):
        wide[f"image_encoder.blocks.{i}.norm1.weight"] = np.zeros(768, "f4")
    _, parts, _ = convert(wide)
    assert parts["image_encoder"]["config"]["num_heads"] == 12
    assert parts["image_encoder"]["config"]["global_attention_layer_indices"] == [2, 5, 8, 11]
