"""What people wrote for KerasCV's Segment Anything, with only the import changed.

After the docstring of KerasCV 0.9's `SegmentAnythingModel` and the ways its parts are called on
their own, at small sizes.
"""

import importlib
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
from keras_sam.compat import keras_cv
from keras_sam.compat.keras_cv import (
    SAMMaskDecoder,
    SAMPromptEncoder,
    SegmentAnythingModel,
    TwoWayMultiHeadAttention,
    TwoWayTransformer,
    ViTDetBackbone,
)
from tests import test_snippets
from tests.tiny import photograph, randomize

pytestmark = pytest.mark.once

# Its fixtures, by which every preset is a tiny one.
tiny_preset = test_snippets.tiny_preset
tiny_presets = test_snippets.tiny_presets
ROOT = Path(__file__).resolve().parents[2]
SIDE, WIDTH = 96, 16  # the frame, 6 patches wide, and the embedding's channels


def make_backbone(include_rescaling=True, **settings):
    return ViTDetBackbone(
        include_rescaling=include_rescaling,
        input_shape=(SIDE, SIDE, 3),
        patch_size=16,
        embed_dim=24,
        depth=2,
        mlp_dim=40,
        num_heads=3,
        out_chans=WIDTH,
        window_size=4,
        global_attention_indices=[1],
        **settings,
    )


def make_model(**backbone):
    keras.utils.set_random_seed(2)
    prompt_encoder = SAMPromptEncoder(
        embed_dim=WIDTH,
        image_embedding_size=(6, 6),
        input_image_size=(SIDE, SIDE),
        mask_in_chans=8,
        activation="gelu",
    )
    mask_decoder = SAMMaskDecoder(
        transformer_dim=WIDTH,
        transformer=TwoWayTransformer(depth=2, embed_dim=WIDTH, mlp_dim=20, num_heads=2),
        num_multimask_outputs=3,
        iou_head_depth=3,
        iou_head_hidden_dim=12,
    )
    model = SegmentAnythingModel(
        backbone=make_backbone(**backbone),
        prompt_encoder=prompt_encoder,
        mask_decoder=mask_decoder,
    )
    randomize(model, 6)
    return model


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def inputs():
    return {
        "images": photograph((SIDE, SIDE))[None].astype("float32"),
        "points": np.array([[[51.0, 51.0], [10.0, 10.0]]]),
        "labels": np.array([[1.0, 0.0]]),
        "boxes": np.array([[[[38.0, 38.0], [64.0, 64.0]]]]),
        "masks": np.ones((1, 1, 24, 24, 1), "float32"),
    }


def to_numpy(x):
    return keras.ops.convert_to_numpy(x)


def close(a, b):
    np.testing.assert_allclose(to_numpy(a), to_numpy(b), rtol=1e-4, atol=1e-4)


@pytest.mark.every_backend
def test_predict_with_all_prompts_and_with_fewer(model, inputs):
    outputs = model.predict(inputs, verbose=0)
    assert outputs["masks"].shape == (1, 4, 24, 24)
    assert outputs["iou_pred"].shape == (1, 4)
    fewer = {k: v for k, v in inputs.items() if k != "masks"}
    assert np.abs(model.predict(fewer, verbose=0)["masks"] - outputs["masks"]).max() > 1e-4


def test_padded_points(model, inputs):
    points, labels = inputs["points"], inputs["labels"]
    padded = {
        "images": inputs["images"],
        "points": np.concatenate([points, np.zeros((1, 1, 2))], axis=1),
        "labels": np.concatenate([labels, -np.ones((1, 1))], axis=1),
    }
    bare = {"images": inputs["images"], "points": points, "labels": labels}
    close(model.predict(padded, verbose=0)["masks"], model.predict(bare, verbose=0)["masks"])


def test_predict_equals_the_three_parts_one_after_the_other(model, inputs):
    # As KerasCV's own test calls them: dicts in, dicts of its names out.
    features = model.image_encoder(inputs["images"])
    prompts = model.prompt_encoder({k: v for k, v in inputs.items() if k != "images"})
    assert {k: tuple(v.shape) for k, v in prompts.items()} == {
        "sparse_embeddings": (1, 4, WIDTH),
        "dense_embeddings": (1, 6, 6, WIDTH),
        "dense_positional_embeddings": (1, 6, 6, WIDTH),
    }
    outputs = model.mask_decoder(
        {
            "image_embeddings": features,
            "image_pe": prompts["dense_positional_embeddings"],
            "sparse_prompt_embeddings": prompts["sparse_embeddings"],
            "dense_prompt_embeddings": prompts["dense_embeddings"],
        }
    )
    expected = model.predict(inputs, verbose=0)
    close(outputs["masks"], expected["masks"])
    close(outputs["iou_pred"], expected["iou_pred"])


@pytest.mark.parametrize(
    ("keys", "tokens"),
    [
        (("points", "labels"), 2),
        (("boxes",), 2),
        (("masks",), 0),
        (("points", "labels", "masks"), 2),
        (("boxes", "masks"), 2),
        (("points", "labels", "boxes"), 4),
    ],
)
def test_prompt_encoder_takes_any_of_the_prompts(model, inputs, keys, tokens):
    outputs = model.prompt_encoder({k: inputs[k] for k in keys})
    assert tuple(outputs["sparse_embeddings"].shape) == (1, tokens, WIDTH)
    absent = {"points": (1, 0, 2), "labels": (1, 0), "boxes": (1, 0, 2, 2)}
    absent = {k: np.zeros(shape, "float32") for k, shape in absent.items() if k not in keys}
    padded = model.prompt_encoder({**{k: inputs[k] for k in keys}, **absent})
    close(padded["dense_embeddings"], outputs["dense_embeddings"])


# how each value of the dict is passed
KINDS = [
    ("array", "list", "list"),
    ("tensor", "list", "list"),
    ("tensor", "array", "list"),
    ("array", "tensor", "array"),
    ("list", "list", "list"),
]


@pytest.mark.every_backend
@pytest.mark.parametrize("kinds", KINDS, ids="-".join)
def test_one_dict_mixes_lists_arrays_and_tensors(model, inputs, kinds):
    def of_kind(value, kind):
        if kind == "tensor":
            return keras.ops.convert_to_tensor(value.astype("float32"))
        return value.tolist() if kind == "list" else value

    names = ("images", "points", "labels")
    arrays = {name: inputs[name] for name in names}
    expected = model(arrays)["masks"]
    mixed = {name: of_kind(inputs[name], kind) for name, kind in zip(names, kinds, strict=True)}
    close(model(mixed)["masks"], expected)
    close(
        model.backbone(mixed)["prompt_sparse_embeddings"],
        model.backbone(arrays)["prompt_sparse_embeddings"],
    )
    prompts = {name: mixed[name] for name in ("points", "labels")}
    embeddings = model.prompt_encoder(prompts)["sparse_embeddings"]
    close(embeddings, model.prompt_encoder({n: inputs[n] for n in prompts})["sparse_embeddings"])
    close(model.prompt_encoder(**prompts)["prompt_sparse_embeddings"], embeddings)
    close(model.predict(mixed, verbose=0)["masks"], expected)


@pytest.mark.every_backend
def test_two_way_layers_under_their_names():
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((1, 5, WIDTH)).astype("float32")
    image = rng.standard_normal((1, 36, WIDTH)).astype("float32")
    block = TwoWayMultiHeadAttention(num_heads=2, key_dim=8, mlp_dim=20, skip_first_layer_pe=False)
    queries, keys = block(queries=tokens, keys=image, query_pe=tokens, key_pe=image)
    assert (tuple(queries.shape), tuple(keys.shape)) == ((1, 5, WIDTH), (1, 36, WIDTH))
    assert (block.mlp_dim, block.skip_first_layer_pe) == (20, False)
    transformer = TwoWayTransformer(depth=2, embed_dim=WIDTH, num_heads=2, mlp_dim=20)
    queries, keys = transformer(
        image_embedding=image.reshape(1, 6, 6, WIDTH),
        image_pe=image.reshape(1, 6, 6, WIDTH),
        point_embedding=tokens,
    )
    assert tuple(queries.shape) == (1, 5, WIDTH)
    assert tuple(keys.shape) == (1, 36, WIDTH)
    assert (transformer.depth, transformer.embed_dim, transformer.mlp_dim) == (2, WIDTH, 20)


def test_layers_of_the_encoder_under_their_names():
    x = np.random.default_rng(0).standard_normal((1, 6, 6, 12)).astype("float32")
    layers = [
        keras_cv.layers.WindowedTransformerEncoder(
            project_dim=12, mlp_dim=20, num_heads=3, use_rel_pos=True, window_size=4
        ),
        keras_cv.layers.MultiHeadAttentionWithRelativePE(
            num_heads=3, key_dim=4, use_rel_pos=True, input_size=(6, 6)
        ),
        keras_cv.layers.AddPositionalEmbedding(96, 16, 12),
    ]
    for layer in layers:
        assert tuple(layer(x).shape) == x.shape
    patches = keras_cv.layers.ViTDetPatchingAndEmbedding((16, 16), (16, 16), embed_dim=12)
    assert tuple(patches(np.zeros((1, 96, 96, 3), "float32")).shape) == x.shape


# constructor, its arguments in KerasCV's words, what they are in ours
NAMES = [
    (
        SAMPromptEncoder,
        {"embed_dim": 16, "mask_in_chans": 8},
        {"hidden_size": 16, "mask_in_channels": 8},
    ),
    (SAMMaskDecoder, {"transformer_dim": 16}, {"hidden_size": 16}),
    (
        TwoWayTransformer,
        {"depth": 3, "embed_dim": 16, "mlp_dim": 24},
        {"num_layers": 3, "hidden_size": 16, "intermediate_dim": 24},
    ),
    (
        TwoWayMultiHeadAttention,
        {"num_heads": 2, "key_dim": 8, "mlp_dim": 24, "skip_first_layer_pe": True},
        {"intermediate_dim": 24, "skip_first_layer_pos_embedding": True},
    ),
    (
        keras_cv.layers.WindowedTransformerEncoder,
        {"project_dim": 12, "mlp_dim": 24, "num_heads": 3},
        {"intermediate_dim": 24, "use_rel_pos": False, "window_size": 0},
    ),
    (
        keras_cv.layers.MultiHeadAttentionWithRelativePE,
        {"num_heads": 3, "key_dim": 4},
        {"num_heads": 3, "use_rel_pos": False, "window_size": 0},
    ),
    (
        keras_cv.layers.ViTDetPatchingAndEmbedding,
        {"embed_dim": 24},
        {"filters": 24, "kernel_size": (16, 16)},
    ),
    (
        keras_cv.layers.AddPositionalEmbedding,
        {"img_size": 96, "patch_size": 16, "embed_dim": 8},
        {},
    ),
    (keras_cv.layers.WindowPartitioning, {"window_size": 4}, {}),
]


@pytest.mark.parametrize(("cls", "theirs", "ours"), NAMES, ids=lambda x: getattr(x, "__name__", ""))
def test_their_names_make_our_layer_and_survive_its_config(cls, theirs, ours):
    layer = cls(**theirs)
    data = json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))
    assert data["registered_name"].startswith("keras_sam.compat.keras_cv>")
    for made in (layer, keras.saving.deserialize_keras_object(data)):
        assert type(made) is cls
        values = {**theirs, **ours}
        assert {name: getattr(made, name) for name in values} == values


# constructor, its arguments in the order of KerasCV's documentation, none of them a default
POSITIONAL = [
    (
        SAMPromptEncoder,
        {
            "embed_dim": 16,
            "image_embedding_size": (4, 6),
            "input_image_size": (64, 96),
            "mask_in_chans": 8,
            "activation": keras.activations.relu,
        },
    ),
    (
        SAMMaskDecoder,
        {
            "transformer_dim": 16,
            "transformer": None,
            "num_multimask_outputs": 2,
            "iou_head_depth": 4,
            "iou_head_hidden_dim": 24,
            "activation": keras.activations.relu,
        },
    ),
    (
        TwoWayTransformer,
        {
            "depth": 3,
            "embed_dim": 16,
            "num_heads": 4,
            "mlp_dim": 24,
            "activation": keras.activations.gelu,
            "attention_downsample_rate": 4,
        },
    ),
    (
        TwoWayMultiHeadAttention,
        {
            "num_heads": 2,
            "key_dim": 8,
            "mlp_dim": 24,
            "skip_first_layer_pe": True,
            "attention_downsample_rate": 4,
            "activation": keras.activations.gelu,
        },
    ),
    (
        keras_cv.layers.MultiHeadAttentionWithDownsampling,
        {"num_heads": 2, "key_dim": 8, "downsample_rate": 2},
    ),
    (
        keras_cv.layers.RandomFrequencyPositionalEmbeddings,
        {"num_positional_features": 8, "scale": 2},
    ),
    (
        keras_cv.layers.WindowedTransformerEncoder,
        {
            "project_dim": 12,
            "mlp_dim": 24,
            "num_heads": 3,
            "use_bias": False,
            "use_rel_pos": True,
            "window_size": 4,
            "input_size": (6, 6),
            "activation": keras.activations.relu,
            "layer_norm_epsilon": 1e-5,
        },
    ),
    (
        keras_cv.layers.MultiHeadAttentionWithRelativePE,
        {
            "num_heads": 3,
            "key_dim": 4,
            "use_bias": False,
            "use_rel_pos": True,
            "input_size": (6, 6),
        },
    ),
    (
        keras_cv.layers.ViTDetPatchingAndEmbedding,
        {"kernel_size": (8, 8), "strides": (8, 8), "embed_dim": 24},
    ),
    (
        keras_cv.layers.AddPositionalEmbedding,
        {"img_size": 96, "patch_size": 16, "embed_dim": 8},
    ),
    (keras_cv.layers.WindowPartitioning, {"window_size": 4}),
]


@pytest.mark.parametrize(("cls", "given"), POSITIONAL, ids=lambda x: getattr(x, "__name__", ""))
def test_positional_arguments_are_those_of_the_documentation(cls, given):
    layer = cls(*given.values())
    wanted = {k: v for k, v in given.items() if k != "transformer"}  # None makes one
    assert {name: getattr(layer, name) for name in wanted} == wanted
    with pytest.raises(TypeError):
        cls(*given.values(), 1, 2, 3, 4)
    with pytest.raises(TypeError):
        cls(*given.values(), **dict([next(iter(given.items()))]))


# constructor, what has to be given, and the documented defaults
DEFAULTS = [
    (
        SAMPromptEncoder,
        {},
        {
            "embed_dim": 256,
            "image_embedding_size": (64, 64),
            "input_image_size": (1024, 1024),
            "mask_in_chans": 16,
            "activation": keras.activations.gelu,
        },
    ),
    (
        SAMMaskDecoder,
        {},
        {
            "transformer_dim": 256,
            "num_multimask_outputs": 3,
            "iou_head_depth": 3,
            "iou_head_hidden_dim": 256,
            "activation": keras.activations.gelu,
        },
    ),
    (
        TwoWayTransformer,
        {},
        {
            "depth": 2,
            "embed_dim": 256,
            "num_heads": 8,
            "mlp_dim": 2048,
            "activation": keras.activations.relu,
            "attention_downsample_rate": 2,
        },
    ),
    (
        TwoWayMultiHeadAttention,
        {"num_heads": 2, "key_dim": 8, "mlp_dim": 24, "skip_first_layer_pe": True},
        {"attention_downsample_rate": 2, "activation": keras.activations.relu},
    ),
    (
        keras_cv.layers.MultiHeadAttentionWithDownsampling,
        {"num_heads": 2, "key_dim": 8},
        {"downsample_rate": 1},
    ),
    (
        keras_cv.layers.WindowedTransformerEncoder,
        {"project_dim": 12, "mlp_dim": 24, "num_heads": 3},
        {
            "use_bias": True,
            "use_rel_pos": False,
            "window_size": 0,
            "input_size": None,
            "activation": keras.activations.gelu,
            "layer_norm_epsilon": 1e-6,
        },
    ),
    (
        keras_cv.layers.MultiHeadAttentionWithRelativePE,
        {"num_heads": 3, "key_dim": 4},
        {"use_bias": True, "use_rel_pos": False, "input_size": None},
    ),
    (
        keras_cv.layers.ViTDetPatchingAndEmbedding,
        {},
        {"kernel_size": (16, 16), "strides": (16, 16), "embed_dim": 768},
    ),
]


@pytest.mark.parametrize(
    ("cls", "given", "defaults"), DEFAULTS, ids=lambda x: getattr(x, "__name__", "")
)
def test_defaults_are_those_of_the_documentation(cls, given, defaults):
    layer = cls(**given)
    assert {name: getattr(layer, name) for name in defaults} == defaults


def test_encoder_has_the_size_of_vit_b_by_default():
    encoder = ViTDetBackbone(include_rescaling=True, input_shape=(32, 32, 3), depth=1)
    config = encoder.get_config()
    documented = {
        "patch_size": 16,
        "hidden_size": 768,
        "intermediate_dim": 768 * 4,
        "num_heads": 12,
        "num_output_channels": 256,
        "use_bias": True,
        "use_abs_pos": True,
        "use_rel_pos": True,
        "window_size": 14,
        "global_attention_layer_indices": [2, 5, 8, 11],
        "layer_norm_epsilon": 1e-6,
    }
    assert {name: config[name] for name in documented} == documented


def test_decoder_of_the_positional_arguments_of_the_released_models():
    decoder = SAMMaskDecoder(256, None, 3, 3, 256, "gelu")
    assert decoder.get_config() == SAMMaskDecoder().get_config()
    transformer = TwoWayTransformer(2, 256, 8, 2048)
    assert transformer.get_config() == TwoWayTransformer().get_config()
    encoder = SAMPromptEncoder(256, (64, 64), (1024, 1024), 16)
    assert encoder.get_config() == SAMPromptEncoder().get_config()


def test_too_many_positional_arguments_are_listed():
    match = r"SAMPromptEncoder takes at most 5 .*: embed_dim, image_embedding_size, input_image_"
    with pytest.raises(TypeError, match=match):
        SAMPromptEncoder(16, (4, 4), (64, 64), 8, "gelu", "prompt_encoder")
    with pytest.raises(TypeError, match="each argument once"):
        SAMPromptEncoder(16, hidden_size=16)


def test_windows_of_a_map_and_back():
    x = np.arange(2 * 5 * 7 * 3, dtype="float32").reshape(2, 5, 7, 3)
    layer = keras_cv.layers.WindowPartitioning(4)
    windows, padded = layer.partition(x)
    assert padded == (8, 8)
    whole = np.zeros((2, 8, 8, 3), "float32")
    whole[:, :5, :7] = x
    expected = [image[y : y + 4, x : x + 4] for image in whole for y in (0, 4) for x in (0, 4)]
    np.testing.assert_array_equal(to_numpy(windows), expected)
    np.testing.assert_array_equal(to_numpy(layer.unpartition(windows, padded, (5, 7))), x)


@pytest.mark.every_backend
def test_encoder_is_ours_under_their_names():
    backbone = make_backbone(layer_norm_epsilon=1e-5, use_abs_pos=False, drop_path_rate=0.1)
    assert type(backbone) is keras_sam.ViTDetBackbone
    config = backbone.get_config()
    expected = {
        "image_shape": (SIDE, SIDE, 3),
        "hidden_size": 24,
        "num_layers": 2,
        "intermediate_dim": 40,
        "num_output_channels": WIDTH,
        "global_attention_layer_indices": [1],
        "layer_norm_epsilon": 1e-5,
        "use_abs_pos": False,
        "drop_path_rate": 0.1,
    }
    assert {name: config[name] for name in expected} == expected


def test_include_rescaling_tells_the_range_of_the_images(inputs):
    bytes_in, unit_in = make_backbone(True), make_backbone(False)
    randomize(bytes_in, 1)
    unit_in.set_weights(bytes_in.get_weights())
    close(bytes_in(inputs["images"]), unit_in(inputs["images"] / 255))


def test_include_rescaling_has_to_be_said():
    with pytest.raises(TypeError, match="include_rescaling"):
        ViTDetBackbone(input_shape=(32, 32, 3))


def test_input_tensor_is_refused_with_a_remedy():
    tensor = keras.Input((SIDE, SIDE, 3))
    with pytest.raises(ValueError, match="`input_tensor` must be None: pass `input_shape="):
        ViTDetBackbone(include_rescaling=True, input_tensor=tensor)
    assert make_backbone()(tensor).shape == (None, 6, 6, WIDTH)  # the remedy


def test_model_for_unit_images_predicts_and_serves_a_predictor(inputs):
    in_bytes, in_unit = make_model(), make_model(include_rescaling=False)
    in_unit.set_weights(in_bytes.get_weights())
    unit = {**inputs, "images": inputs["images"] / 255}
    close(in_unit.predict(unit, verbose=0)["masks"], in_bytes.predict(inputs, verbose=0)["masks"])
    # A predictor takes photographs, 0..255, whatever the model inside it takes.
    image = photograph((70, 90))
    masks = []
    for model in (in_bytes, in_unit):
        predictor = keras_sam.SAMPredictor(model)
        predictor.set_image(image)
        masks.append(predictor.predict(points=[[30, 40]], labels=[1])[2])
    close(*masks)


@pytest.mark.parametrize(
    ("alias", "size", "preset"),
    [
        (keras_cv.ViTDetBBackbone, "vitdet_base", "sam_base_sa1b"),
        (keras_cv.ViTDetLBackbone, "vitdet_large", "sam_large_sa1b"),
        (keras_cv.ViTDetHBackbone, "vitdet_huge", "sam_huge_sa1b"),
    ],
)
def test_aliases_have_the_sizes_of_the_presets(alias, size, preset):
    config = json.loads((ROOT / "presets" / preset / "config.json").read_text())
    encoder = config["config"]["image_encoder"]["config"]
    sizes = keras_cv.models.backbones.size_arguments(size)
    assert len(sizes) == 5
    assert sizes.items() <= encoder.items()
    # One block only: the whole of ViT-H is 2.5 GB.
    small = {"input_shape": (32, 32, 3), "depth": 1}
    for made in (alias(**small), alias.from_preset(size, **small)):
        assert type(made) is keras_sam.ViTDetBackbone
        for argument in ("hidden_size", "intermediate_dim", "num_heads"):
            assert getattr(made, argument) == encoder[argument]
        assert made.pixel_mean == pytest.approx(encoder["pixel_mean"])  # 0..255


def test_presets_of_each_class():
    sizes = ["vitdet_base", "vitdet_large", "vitdet_huge"]
    trained = [f"{size}_sa1b" for size in sizes]
    assert [*ViTDetBackbone.presets] == [*sizes, *trained]
    assert [*ViTDetBackbone.presets_with_weights] == trained
    assert [*ViTDetBackbone.presets_without_weights] == sizes
    for size, cls in zip("BLH", sizes, strict=True):
        alias = getattr(keras_cv.models, f"ViTDet{size}Backbone")
        assert [*alias.presets] == [*alias.presets_with_weights] == [f"{cls}_sa1b"]
    assert ViTDetBackbone.presets["vitdet_base"]["parameters"] == 89_670_912
    assert [*SegmentAnythingModel.backbone_presets] == [*sizes, *trained]
    whole = {"sam_base_sa1b", "sam_large_sa1b", "sam_huge_sa1b"}
    assert whole | {*sizes, *trained} <= SegmentAnythingModel.presets.keys()
    assert whole | {*trained} <= SegmentAnythingModel.presets_with_weights.keys()
    assert [*SegmentAnythingModel.presets_without_weights] == sizes


def test_encoder_of_a_preset_for_another_frame_and_for_unit_images(tiny_presets, inputs):
    encoder = ViTDetBackbone.from_preset("vitdet_base_sa1b", input_shape=(SIDE, SIDE, 3))
    unit = ViTDetBackbone.from_preset(
        "vitdet_base_sa1b", input_shape=(SIDE, SIDE, 3), include_rescaling=False
    )
    close(encoder(inputs["images"]), unit(inputs["images"] / 255))


def test_model_of_an_encoder_preset_and_parts(tiny_presets, model):
    # What `Task.from_preset` of KerasCV does with the preset of a backbone.
    made = SegmentAnythingModel.from_preset(
        "vitdet_base_sa1b",
        input_shape=(SIDE, SIDE, 3),
        prompt_encoder=model.prompt_encoder,
        mask_decoder=model.mask_decoder,
    )
    assert made.image_shape == (SIDE, SIDE, 3)
    expected = ViTDetBackbone.from_preset("vitdet_base_sa1b", input_shape=(SIDE, SIDE, 3))
    image = np.ones((1, SIDE, SIDE, 3), "float32")
    close(made.image_encoder(image), expected(image))


def test_task_and_backbone_know_their_models(tiny_presets, model):
    models = keras_cv.models
    task = models.Task.from_preset("sam_base_sa1b", load_weights=False)
    whole = SegmentAnythingModel.from_preset("sam_base_sa1b", input_shape=(64, 96, 3))
    assert whole.image_shape == (64, 96, 3)
    for made in (task, whole, model):
        assert isinstance(made, models.Task)
        assert isinstance(made, SegmentAnythingModel)
        assert not isinstance(made, models.Backbone)
        assert isinstance(made.image_encoder, models.Backbone)
        assert isinstance(made.image_encoder, ViTDetBackbone)
    assert issubclass(SegmentAnythingModel, models.Task)
    assert issubclass(ViTDetBackbone, models.Backbone)


def test_sizes_have_no_weights():
    with pytest.raises(ValueError, match='"vitdet_base_sa1b"'):
        ViTDetBackbone.from_preset("vitdet_base", load_weights=True)


def test_presets_are_ours(model, tmp_path, inputs):
    model.save_to_preset(tmp_path / "preset")
    loaded = SegmentAnythingModel.from_preset(tmp_path / "preset")
    assert type(loaded) is keras_sam.SAMImageSegmenter
    close(loaded.predict(inputs, verbose=0)["masks"], model.predict(inputs, verbose=0)["masks"])
    encoder = ViTDetBackbone.from_preset(tmp_path / "preset")
    close(encoder(inputs["images"]), model.image_encoder(inputs["images"]))
    assert "sam_huge_sa1b" in SegmentAnythingModel.presets


def test_another_image_shape_works_as_for_ours(model):
    larger = model.at_image_shape((SIDE, 2 * SIDE))
    assert larger.embedding_size == (6, 12)
    assert isinstance(larger.prompt_encoder, SAMPromptEncoder)


def test_saved_model_loads_in_a_new_process_that_knows_nothing_of_compat(model, tmp_path, inputs):
    model.save(tmp_path / "model.keras")
    np.savez(tmp_path / "inputs.npz", **inputs)
    script = """
        import sys
        import numpy as np
        import keras_sam
        import keras
        model = keras.saving.load_model(sys.argv[1] + "/model.keras")
        inputs = dict(np.load(sys.argv[1] + "/inputs.npz"))
        np.save(sys.argv[1] + "/masks.npy", model.predict(inputs, verbose=0)["masks"])
        """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    close(np.load(tmp_path / "masks.npy"), model.predict(inputs, verbose=0)["masks"])


def test_namespaces_are_those_of_keras_cv():
    models, layers = keras_cv.models, keras_cv.layers
    assert models.segmentation.SegmentAnythingModel is models.SegmentAnythingModel
    assert models.SAMPromptEncoder is SAMPromptEncoder
    assert layers.TwoWayMultiHeadAttention is TwoWayMultiHeadAttention
    same = "MultiHeadAttentionWithDownsampling", "RandomFrequencyPositionalEmbeddings"
    assert all(getattr(layers, name) is getattr(keras_sam, name) for name in same)


@pytest.mark.parametrize("place", ["models", "layers", "src.models", "src.layers"])
def test_everything_can_be_imported_from(place):
    names = getattr(keras_cv, place.rpartition(".")[2]).__all__
    module = importlib.import_module(f"keras_sam.compat.keras_cv.{place}")
    assert [getattr(module, name).__name__ for name in names]
    expected = getattr(keras_cv, place.rpartition(".")[2])
    assert all(getattr(module, name) is getattr(expected, name) for name in names)
