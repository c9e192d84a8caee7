"""What people wrote for tfimm's Segment Anything, with only the import changed.

After tfimm 0.2.14's page "Segment Anything", its docstrings of `create_model` and `list_models`,
and the ways its tests call them, at small sizes.
"""

import dataclasses
import json

import keras
import numpy as np
import pytest

import keras_sam
import keras_sam.compat.tfimm as tfimm
from keras_sam.compat.tfimm.architectures.segment_anything import (
    ImageResizer,
    SAMPredictor,
    SegmentAnythingModel,
    SegmentAnythingModelConfig,
)
from keras_sam.compat.tfimm.models import factory, register_model
from keras_sam.geometry import resize_image
from keras_sam.images import PIXEL_MEAN, PIXEL_STD
from keras_sam.preprocessing import SAMImageSegmenterPreprocessor
from tests import test_snippets
from tests.tiny import photograph, randomize, without_random_values

pytestmark = pytest.mark.once

# Its fixtures, by which every preset is a tiny one.
tiny_preset = test_snippets.tiny_preset
tiny_presets = test_snippets.tiny_presets

ROOT = test_snippets.ROOT
FRAME, MASK = (112, 144), (28, 36)


def make_config(**changes):
    """The config of the tiny model of the tests, whose preset has the name that `url` gives."""
    settings = {
        "name": "sam_vit_tiny",
        "url": "sam_base_sa1b",
        "input_size": FRAME,
        "embed_dim": 16,
        "encoder_embed_dim": 24,
        "encoder_nb_blocks": 3,
        "encoder_nb_heads": 3,
        "encoder_mlp_ratio": 40 / 24,
        "encoder_global_attn_indices": (1,),
        "encoder_window_size": 4,
        "prompt_mask_hidden_dim": 8,
        "decoder_nb_heads": 2,
        "decoder_mlp_channels": 20,
        "decoder_iou_hidden_dim": 12,
    }
    return SegmentAnythingModelConfig(**{**settings, **changes})


def make_model(**changes):
    with without_random_values():
        model = SegmentAnythingModel(make_config(**changes))
    randomize(model.segmenter.backbone, 5)
    return model


@pytest.fixture
def registered(monkeypatch):
    """`sam_vit_tiny`, among the models for one test."""
    monkeypatch.setattr(factory, "_MODELS", dict(factory._MODELS))

    def sam_vit_tiny():
        return SegmentAnythingModel, make_config()

    register_model(sam_vit_tiny)


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def image():
    return photograph((60, 90), seed=2)


@pytest.fixture(scope="module")
def predictor(model, image):
    predictor = SAMPredictor(model)
    predictor.set_image(image)
    return predictor


@pytest.fixture(scope="module")
def ours(model, image):
    """Our predictor with the same weights, normalising by itself."""
    statistics = {"pixel_mean": PIXEL_MEAN, "pixel_std": PIXEL_STD}
    encoder = {**model.image_encoder.get_config(), **statistics}
    with without_random_values():
        backbone = keras_sam.SAMBackbone(
            keras_sam.ViTDetBackbone.from_config(encoder),
            keras_sam.SAMPromptEncoder.from_config(model.prompt_encoder.get_config()),
            keras_sam.SAMMaskDecoder.from_config(model.mask_decoder.get_config()),
        )
    backbone.set_weights(model.segmenter.backbone.get_weights())
    segmenter = keras_sam.SAMImageSegmenter(
        backbone, SAMImageSegmenterPreprocessor.for_backbone(backbone)
    )
    predictor = keras_sam.SAMPredictor(segmenter)
    predictor.set_image(image)
    return predictor


def to_numpy(x):
    return keras.ops.convert_to_numpy(x)


def close(a, b):
    np.testing.assert_allclose(to_numpy(a), to_numpy(b), rtol=1e-4, atol=1e-4)


# --- models by name ---


def test_list_models():
    assert tfimm.list_models() == ["sam_vit_b", "sam_vit_h", "sam_vit_l"]
    assert tfimm.list_models("sam_*") == tfimm.list_models()
    assert tfimm.list_models("*_l") == ["sam_vit_l"]
    assert tfimm.list_models(["*_l", "*_b"]) == ["sam_vit_b", "sam_vit_l"]
    assert tfimm.list_models("vit_*") == []
    assert tfimm.list_models(module="sam", exclude_filters="*_h") == ["sam_vit_b", "sam_vit_l"]
    assert tfimm.list_models("sam_*", "vit") == []
    assert tfimm.list_models(pretrained=True) == tfimm.list_models()
    assert tfimm.list_models(pretrained="timm") == []


def test_registered_models_are_listed(registered):
    assert "sam_vit_tiny" in tfimm.list_models()
    with pytest.raises(ValueError, match="must be the function's, 'other'"):

        @register_model
        def other():
            return SegmentAnythingModel, make_config()


@pytest.mark.parametrize(("name", "preset"), [("b", "base"), ("l", "large"), ("h", "huge")])
def test_released_models_have_the_sizes_of_the_presets(name, preset):
    cfg = factory._MODELS[f"sam_vit_{name}"][1]
    assert cfg.url == f"sam_{preset}_sa1b"
    config = json.loads((ROOT / "presets" / cfg.url / "config.json").read_text())["config"]
    encoder, decoder = (config[part]["config"] for part in ("image_encoder", "mask_decoder"))
    assert (cfg.encoder_embed_dim, cfg.encoder_nb_blocks, cfg.encoder_nb_heads) == (
        encoder["hidden_size"],
        encoder["num_layers"],
        encoder["num_heads"],
    )
    assert cfg.encoder_embed_dim * cfg.encoder_mlp_ratio == encoder["intermediate_dim"]
    assert [*cfg.encoder_global_attn_indices] == encoder["global_attention_layer_indices"]
    assert cfg.decoder_mlp_channels == decoder["intermediate_dim"]
    assert cfg.decoder_iou_hidden_dim == decoder["iou_head_hidden_dim"]
    assert [*cfg.mean] == pytest.approx(np.divide(PIXEL_MEAN, 255))
    assert [*cfg.std] == pytest.approx(np.divide(PIXEL_STD, 255))


def test_config_has_the_documented_defaults_and_reads_json():
    documented = {
        "name": "",
        "url": "",
        "in_channels": 3,
        "input_size": (1024, 1024),
        "fixed_input_size": True,
        "embed_dim": 256,
        "nb_multimask_outputs": 3,
        "mask_threshold": 0.0,
        "encoder_patch_size": 16,
        "encoder_embed_dim": 768,
        "encoder_nb_blocks": 12,
        "encoder_nb_heads": 12,
        "encoder_mlp_ratio": 4.0,
        "encoder_drop_rate": 0.0,
        "encoder_attn_drop_rate": 0.0,
        "encoder_drop_path_rate": 0.0,
        "encoder_norm_layer": "layer_norm_eps_1e-6",
        "encoder_act_layer": "gelu",
        "encoder_qkv_bias": True,
        "encoder_global_attn_indices": (2, 5, 8, 11),
        "encoder_window_size": 14,
        "prompt_mask_hidden_dim": 16,
        "decoder_nb_blocks": 2,
        "decoder_nb_heads": 8,
        "decoder_mlp_channels": 2048,
        "decoder_iou_head_depth": 3,
        "decoder_iou_hidden_dim": 256,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "image_encoder/patch_embed/proj",
    }
    assert dataclasses.asdict(SegmentAnythingModelConfig()) == documented
    saved = json.loads(json.dumps(dataclasses.asdict(make_config())))
    assert SegmentAnythingModelConfig(**saved) == make_config()
    with pytest.raises(ValueError, match="`encoder_norm_layer` must be one of"):
        make_config(encoder_norm_layer="batch_norm")


def test_create_model_takes_fields_of_the_config(registered):
    model = tfimm.create_model(
        "sam_vit_tiny",
        in_channels=1,
        input_size=(64, 96),
        mask_threshold=0.5,
        encoder_drop_path_rate=0.4,
        encoder_norm_layer="layer_norm",
        name="mine",
    )
    assert isinstance(model, SegmentAnythingModel)
    assert (model.name, model.mask_threshold) == ("mine", 0.5)
    assert model.segmenter.image_shape == (64, 96, 1)
    assert model.image_encoder.drop_path_rate == 0.4
    assert model.image_encoder.layer_norm_epsilon == 1e-5
    assert factory._MODELS["sam_vit_tiny"][1] == make_config()  # stays what it was


def test_create_model_names_what_it_does_not_know(registered):
    with pytest.raises(TypeError, match="no field `input_sise`. Did you mean `input_size`"):
        tfimm.create_model("sam_vit_tiny", input_sise=(64, 96))
    with pytest.raises(ValueError, match="`input_size` must be a pair.*input_size=64"):
        tfimm.create_model("sam_vit_tiny", input_size=64)
    with pytest.raises(ValueError, match="`SAMPredictor.set_image` reads files"):
        tfimm.create_preprocessing("sam_vit_tiny")("photo.jpg")
    with pytest.raises(TypeError, match="no field `nb_classes`"):
        tfimm.create_model("sam_vit_tiny", nb_classes=10)
    with pytest.raises(ValueError, match=r"one of \['sam_vit_b', .*Received: model_name='vit_b'"):
        tfimm.create_model("vit_b")
    with pytest.raises(ValueError, match="Received: model_name='vit_b'"):
        tfimm.create_preprocessing("vit_b")


def test_pretrained_model_is_the_preset(registered, tiny_presets, image):
    model = tfimm.create_model("sam_vit_tiny", pretrained=True)
    predictor = SAMPredictor(model)
    predictor.set_image(image)
    segmenter = keras_sam.SAMImageSegmenter.from_preset("sam_base_sa1b")
    ours = keras_sam.SAMPredictor(segmenter)
    ours.set_image(image)
    for result, expected in zip(
        predictor([[45, 30]], [1]), ours.predict(points=[[45, 30]], labels=[1])
    ):
        close(result, expected)


def test_pretrained_model_of_another_frame_and_of_grey_images(registered, tiny_presets):
    model = tfimm.create_model("sam_vit_tiny", True, input_size=(64, 96), in_channels=1)
    preset = keras_sam.SAMImageSegmenter.from_preset("sam_base_sa1b", image_shape=(64, 96))
    theirs, ours = (
        {v.path: to_numpy(v) for v in encoder.weights}
        for encoder in (model.image_encoder, preset.image_encoder)
    )
    kernel = "patch_embedding/kernel"
    np.testing.assert_allclose(
        theirs.pop(kernel), ours.pop(kernel).sum(axis=2, keepdims=True), atol=1e-6
    )
    assert theirs.keys() == ours.keys()
    for name, values in theirs.items():
        np.testing.assert_array_equal(values, ours[name], err_msg=name)


@pytest.mark.parametrize("kind", ["file of model.save", "folder of a preset"])
def test_model_path(kind, registered, model, tmp_path):
    if kind == "file of model.save":
        path = tmp_path / "model.keras"
        model.save(path)
    else:
        path = tmp_path / "preset"
        model.segmenter.save_to_preset(path)
    loaded = tfimm.create_model("sam_vit_tiny", model_path=str(path))
    close(loaded(model.dummy_inputs)[2], model(model.dummy_inputs)[2])
    other = tfimm.create_model("sam_vit_tiny", model_path=str(path), input_size=(64, 96))
    assert other.segmenter.image_shape == (64, 96, 3)


def test_create_preprocessing(registered):
    preprocess = tfimm.create_preprocessing("sam_vit_tiny")
    images = np.full((2, 3, 4, 3), 255, "uint8")
    expected = np.broadcast_to(
        (1 - np.float32([0.485, 0.456, 0.406])) / [0.229, 0.224, 0.225], (3, 4, 3)
    )
    close(preprocess(images), np.stack([expected, expected]))
    close(preprocess(images[0]), expected)
    grey = tfimm.create_preprocessing("sam_vit_b", in_channels=1)
    close(grey(np.zeros((3, 4, 1))), np.full((3, 4, 1), -0.485 / 0.229))
    four = tfimm.create_preprocessing("sam_vit_b", in_channels=4, dtype="float16")(
        np.zeros((1, 1, 4))
    )
    assert keras.backend.standardize_dtype(four.dtype) == "float16"
    np.testing.assert_allclose(to_numpy(four)[0, 0, [0, 3]], -0.485 / 0.229, rtol=2e-3)


# --- the model ---


def test_sizes_and_dummy_inputs(model):
    assert (model.grid_size(), model.mask_size()) == ((7, 9), MASK)
    assert (model.grid_size((64, 32)), model.mask_size((64, 32))) == ((4, 2), (16, 8))
    assert {name: tuple(x.shape) for name, x in model.dummy_inputs.items()} == {
        "images": (1, *FRAME, 3),
        "points": (1, 1, 2),
        "labels": (1, 1),
        "boxes": (1, 1, 4),
        "masks": (1, 1, *MASK),
    }


@pytest.mark.every_backend
@pytest.mark.parametrize(("multimask_output", "count"), [(True, 3), (False, 1)])
def test_model_gives_its_three_outputs(model, multimask_output, count):
    options = {"multimask_output": multimask_output}
    masks, scores, logits = model(model.dummy_inputs, **options)
    assert [tuple(x.shape) for x in (masks, scores, logits)] == [
        (1, count, *FRAME),
        (1, count),
        (1, count, *MASK),
    ]
    large, *same = model(model.dummy_inputs, return_logits=True, **options)
    np.testing.assert_array_equal(to_numpy(masks), to_numpy(large) > model.mask_threshold)
    close(same[1], logits)
    expected = model.segmenter(
        {
            "images": np.zeros((1, *FRAME, 3), "float32"),
            "points": np.zeros((1, 1, 2)),
            "labels": np.zeros((1, 1)),
            "boxes": np.zeros((1, 1, 4)),
            "masks": np.zeros((1, 1, *MASK, 1)),
        }
    )
    kept = slice(1, None) if multimask_output else slice(1)
    close(logits, expected["masks"][:, 0, kept])
    close(scores, expected["iou_pred"][:, 0, kept])


def test_one_mask_is_the_default(model):
    close(model(model.dummy_inputs)[2], model(model.dummy_inputs, multimask_output=False)[2])


def test_model_takes_any_of_the_prompts_and_empty_ones(model):
    inputs = {**model.dummy_inputs, "boxes": [[[10, 20, 60, 70]]]}  # a list among tensors
    every = model(inputs)[2]
    for name in ("points", "boxes", "masks"):
        left_out = ("points", "labels") if name == "points" else (name,)
        fewer = {k: v for k, v in inputs.items() if k not in left_out}
        empty = {k: np.zeros((1, 0, *np.shape(inputs[k])[2:]), "float32") for k in left_out}
        logits = model(fewer)[2]
        close(model({**fewer, **empty})[2], logits)
        assert np.abs(to_numpy(logits) - to_numpy(every)).max() > 1e-4
    alone = model({"images": inputs["images"], "masks": inputs["masks"]})[2]
    assert tuple(alone.shape) == (1, 1, *MASK)
    with pytest.raises(ValueError, match="No prompt was given"):
        model({"images": inputs["images"]})


def test_another_size_needs_a_model_that_takes_it(model):
    images = np.zeros((1, 64, 96, 3), "float32")
    inputs = {"images": images, "points": np.ones((1, 1, 2)), "labels": np.ones((1, 1))}
    with pytest.raises(ValueError, match=r"size, \(112, 144\). Received: \(64, 96\)"):
        model(inputs)
    for wrong, received in ((images, "ndarray"), ({"points": images}, r"dict of \['points'\]")):
        with pytest.raises(ValueError, match=f"`inputs` must be a dict.*Received: {received}"):
            model(wrong)
    flexible = make_model(fixed_input_size=False)
    images = np.random.default_rng(0).standard_normal((1, 64, 96, 3)).astype("float32")
    masks, scores, logits = flexible({**inputs, "images": images})
    assert [tuple(x.shape) for x in (masks, logits)] == [(1, 1, 64, 96), (1, 1, 16, 24)]
    smaller = flexible.segmenter.at_image_shape((64, 96))
    close(logits, smaller({**inputs, "images": images})["masks"][:, :1])


@pytest.mark.every_backend
def test_saved_model_loads(model, tmp_path):
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    assert type(loaded) is SegmentAnythingModel
    assert loaded.cfg == model.cfg
    for a, b in zip(model(model.dummy_inputs), loaded(model.dummy_inputs), strict=True):
        np.testing.assert_array_equal(to_numpy(a), to_numpy(b))


def test_image_positional_encodings(model):
    encodings = model.get_image_pe(np.zeros((2, 7, 9, 16)))
    expected = model.prompt_encoder.positional_embedding.encode_image((7, 9))
    close(encodings, np.stack([to_numpy(expected)] * 2))


# --- the predictor ---


def test_prompts_of_one_object_are_those_of_our_predictor(predictor, ours):
    assert predictor.image_set
    close(predictor.image_embedding, ours.image_embeddings)
    boxes = [[10, 12, 40, 50], [30, 20, 80, 45]]
    points = {"points": [[45, 30], [10, 10]], "labels": [1, 0]}
    for given, same in [
        (points, points),
        ({"boxes": boxes[:1]}, {"boxes": boxes[0]}),
        ({"boxes": boxes}, {"boxes": [boxes]}),
        (
            {**points, "boxes": boxes},
            {"points": [points["points"]], "labels": [points["labels"]], "boxes": [boxes]},
        ),
    ]:
        for options in ({}, {"multimask_output": False}, {"return_logits": True}):
            results = predictor(**given, **options)
            expected = [
                x.reshape(x.shape[-n:]) for n, x in zip((3, 1, 3), ours.predict(**same, **options))
            ]
            for result, other in zip(results, expected, strict=True):
                assert result.shape == other.shape
                if result.dtype == bool:
                    assert (result != other).mean() < 1e-3
                else:
                    close(result, other)


def test_objects_in_a_batch_are_each_by_itself(predictor):
    points = np.array([[[45, 30], [10, 10]], [[70, 20], [30, 50]]])
    labels = np.array([[1, 0], [1, 1]])
    masks, scores, logits = predictor(points, labels)
    assert [x.shape for x in (masks, scores, logits)] == [(2, 3, 60, 90), (2, 3), (2, 3, *MASK)]
    for i in range(2):
        close(predictor(points[i], labels[i])[2], logits[i])
    alone = predictor(points[:1], labels[:1])
    assert alone[0].shape == (1, 3, 60, 90)
    refined = predictor(masks=logits[:, :1], multimask_output=False)
    assert refined[0].shape == (2, 1, 60, 90)


def test_mask_prompts_of_one_object(predictor, model):
    _, _, logits = predictor([[45, 30]], [1])
    one = predictor(masks=logits[:1])
    assert [x.shape for x in one] == [(3, 60, 90), (3,), (3, *MASK)]
    batch = predictor(masks=logits[:1][None])
    assert batch[0].shape == (1, 3, 60, 90)
    close(batch[2][0], one[2])
    with_point = predictor([[45, 30]], [1], masks=logits[:1])
    assert np.abs(with_point[2] - one[2]).max() > 1e-4


def test_several_masks_of_one_object_are_added_up(predictor, model):
    points, labels = [[45, 30]], [1]
    _, _, logits = predictor(points, labels)
    masks, scores, again = predictor(points, labels, masks=logits[:2], multimask_output=False)
    assert [x.shape for x in (masks, scores, again)] == [(1, 60, 90), (1,), (1, *MASK)]
    # The decoder on the sum of what each mask is embedded as.
    scaled = predictor.resizer.scale_points(np.array([points]))
    with_each = [
        model.prompt_encoder(
            points=np.concatenate([scaled, np.zeros((1, 1, 2), "float32")], axis=1),
            labels=np.array([[1, -1]]),
            masks=mask[None, None, ..., None],
        )
        for mask in logits[:2]
    ]
    dense = sum(to_numpy(x["prompt_dense_embeddings"]) for x in with_each)
    outputs = model.mask_decoder(
        image_embeddings=predictor.image_embedding,
        **{**with_each[0], "prompt_dense_embeddings": dense},
    )
    close(again, outputs["masks"][0, :1])
    close(scores, outputs["iou_pred"][0, :1])
    large = predictor(points, labels, masks=logits[:2], multimask_output=False, return_logits=True)
    np.testing.assert_array_equal(masks, large[0] > model.mask_threshold)
    swapped = predictor(points, labels, masks=logits[1::-1], multimask_output=False)
    close(swapped[2], again)
    both = predictor(masks=np.stack([logits[:2], logits[1:]]))
    assert both[0].shape == (2, 3, 60, 90)
    close(both[2][0], predictor(masks=logits[:2])[2])


def test_preprocess_masks(predictor):
    logits = np.random.default_rng(0).standard_normal((2, 3, 60, 90)).astype("float32")
    made = predictor.preprocess_masks(logits)
    assert made.shape == (2, 3, *MASK)
    np.testing.assert_array_equal(predictor.preprocess_masks(logits[0]), made[0])
    constant = predictor.preprocess_masks(np.full((1, 60, 90), 7.0, "float32"))
    # 60 x 90 pixels fill 96 x 144 of the frame, and 24 x 36 of the mask's.
    np.testing.assert_allclose(constant[:, :24], 7, rtol=1e-6)
    assert (constant[:, 24:] < -6).all()
    assert predictor(masks=constant)[0].shape == (3, 60, 90)


def test_image_is_forgotten(model, image):
    predictor = SAMPredictor(model)
    assert (predictor.image_set, predictor.image_embedding, predictor.resizer) == (
        False,
        None,
        None,
    )
    assert (predictor.input_size(), predictor.mask_size()) == (FRAME, MASK)
    predictor.set_image(image)
    assert predictor.resizer.src_size == (60, 90)
    predictor.clear_image()
    assert (predictor.image_set, predictor.image_embedding, predictor.resizer) == (
        False,
        None,
        None,
    )
    for call in (lambda: predictor([[1, 2]], [1]), lambda: predictor.preprocess_masks(image)):
        with pytest.raises(ValueError, match="No image is set: call `set_image`"):
            call()


def test_prompts_of_different_batches_are_refused(predictor):
    with pytest.raises(ValueError, match=r"same number of objects.*'boxes': \(2, 1, 4\)"):
        predictor(points=[[45, 30]], labels=[1], boxes=np.ones((2, 1, 4)))
    with pytest.raises(ValueError, match="same number of objects"):
        predictor(points=np.ones((3, 1, 2)), labels=np.ones((2, 1)))


def test_preprocessing_of_ones_own_makes_the_frame(model, image):
    plain, own = SAMPredictor(model), SAMPredictor(model, lambda images: images / 127.5)
    plain.set_image(image)
    own.set_image(image)
    frame = np.tile(np.float32(PIXEL_MEAN), (1, *FRAME, 1))  # the border's colour
    frame[0, :96] = own.resizer.scale_image(image)
    frame /= 127.5
    close(own.image_embedding, model.image_encoder(frame))
    assert np.abs(own.image_embedding - plain.image_embedding).max() > 1e-3


def test_flexible_model_pads_the_image_alone(image):
    model = make_model(fixed_input_size=False)
    predictor = SAMPredictor(model)
    with pytest.raises(ValueError, match="No image is set"):
        predictor.input_size()
    predictor.set_image(image)
    assert (predictor.input_size(), predictor.mask_size()) == ((64, 96), (16, 24))
    assert predictor.resizer.pad_only
    masks, _, logits = predictor([[45, 30]], [1], return_logits=True)
    assert (masks.shape, logits.shape) == ((3, 60, 90), (3, 16, 24))
    frame = np.zeros((1, 64, 96, 3), "float32")
    frame[0, :60, :90] = to_numpy(tfimm.create_preprocessing("sam_vit_b")(image))
    inputs = {"images": frame, "points": [[[45, 30]]], "labels": [[1]]}
    large, _, expected = model(inputs, multimask_output=True, return_logits=True)
    close(logits, expected[0])
    close(masks, large[0, :, :60, :90])


# --- the resizer ---


@pytest.mark.parametrize(
    ("src_size", "dst_size", "scale", "rescaled_size"),
    [
        ((20, 10), (30, 40), 1.5, (30, 15)),  # the height decides
        ((10, 20), (30, 40), 2, (20, 40)),  # the width decides
        ((10, 20), (20, 10), 0.5, (5, 10)),  # smaller
        ((20, 10), (4, 4), 0.2, (4, 2)),
    ],
)
def test_largest_size_that_fits(src_size, dst_size, scale, rescaled_size):
    resizer = ImageResizer(src_size=src_size, dst_size=dst_size)
    assert (resizer.scale, resizer.rescaled_size) == (pytest.approx(scale), rescaled_size)
    assert (resizer.src_size, resizer.dst_size) == (src_size, dst_size)
    close(resizer.scale_points(np.array([[src_size[1], src_size[0]]])), [rescaled_size[::-1]])
    close(resizer.scale_boxes(np.ones((2, 4))), np.full((2, 4), scale))


def test_padding_alone():
    resizer = ImageResizer((20, 10), (32, 16), True)
    assert (resizer.scale, resizer.rescaled_size) == (1.0, (20, 10))
    image = photograph((20, 10))
    np.testing.assert_array_equal(resizer.scale_image(image), image)
    padded = resizer.pad_image(image)
    assert padded.shape == (32, 16, 3)
    np.testing.assert_array_equal(padded[:20, :10], image)
    assert not padded[20:].any() and not padded[:, 10:].any()
    points = np.array([[3.0, 4.0]])
    np.testing.assert_array_equal(resizer.scale_points(points), points)


@pytest.mark.every_backend
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64", "int32"])
def test_batches_and_channels_first(dtype):
    resizer = ImageResizer((20, 10), (30, 40))
    images = np.stack([photograph((20, 10), seed, channels=4) for seed in range(2)]).astype(dtype)
    first = np.moveaxis(images, -1, 1)
    for method, size in [("scale_image", (30, 15)), ("pad_image", (30, 40))]:
        call = getattr(resizer, method)
        made = call(images)
        assert (made.dtype, made.shape) == (dtype, (2, *size, 4))
        np.testing.assert_array_equal(call(images[1]), made[1])
        np.testing.assert_array_equal(call(first, channels_last=False), np.moveaxis(made, -1, 1))
        np.testing.assert_array_equal(
            call(first[0], channels_last=False), np.moveaxis(made[0], -1, 0)
        )
    scaled = resizer.scale_image(images)
    assert resizer.unscale_image(scaled).shape == images.shape
    assert (
        resizer.unscale_image(np.moveaxis(scaled, -1, 1), channels_last=False).shape == first.shape
    )
    expected = resize_image(images[0], (7, 9))
    made = ImageResizer.scale_to_size(images, (7, 9), True)[0]
    np.testing.assert_allclose(made, expected, atol=0 if dtype[0] in "uf" else 0.5)


def test_image_that_cannot_be_padded_or_is_none():
    resizer = ImageResizer((20, 10), (30, 40))
    with pytest.raises(
        ValueError, match=r"fit into dst_size=\(30, 40\). Received: shape=\(31, 9, 3"
    ):
        resizer.pad_image(np.zeros((31, 9, 3)))
    with pytest.raises(ValueError, match="`dst_size` must be a pair of ints.*Received: 512"):
        ImageResizer((20, 10), 512)
    with pytest.raises(ValueError, match=r"Received: shape=\(20, 10\)"):
        resizer.scale_image(np.zeros((20, 10)))


def test_masks_of_the_frame_at_the_original_size():
    resizer = ImageResizer((20, 10), (30, 40))
    logits = np.full((2, 3, 30, 40), -5.0, "float32")
    logits[..., :15] = np.linspace(-1, 1, 30)[:, None]  # the image; the rest is padding
    restored = resizer.postprocess_mask(logits)
    assert restored.shape == (2, 3, 20, 10)
    # Row i of 20 has its centre at 1.5 i + 0.25 of the frame's rows, 0 to 29.
    rows = np.clip(1.5 * np.arange(20) + 0.25, 0, 29)
    np.testing.assert_allclose(restored[1, 2, :, 3], rows * 2 / 29 - 1, atol=1e-5)
    np.testing.assert_array_equal(resizer.postprocess_mask(logits, threshold=0.2), restored > 0.2)
    assert resizer.postprocess_mask(logits[0]).shape == (3, 20, 10)
