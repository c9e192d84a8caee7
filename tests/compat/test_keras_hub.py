"""What people wrote for KerasHub's Segment Anything, with only the import changed.

After the examples in KerasHub 0.32's docstrings of `models/sam` and `models/vit_det`, and
keras.io's guide "Segment Anything in KerasHub", at small sizes.
"""

import importlib
import inspect

import keras
import numpy as np
import pytest

import keras_sam
from keras_sam.compat import keras_cv, keras_hub
from keras_sam.presets import list_presets
from tests import test_snippets
from tests.tiny import photograph, randomize

pytestmark = pytest.mark.once

# Its fixtures, by which every preset is a tiny one: frame 112 x 144.
tiny_preset = test_snippets.tiny_preset
tiny_presets = test_snippets.tiny_presets

SIDE = 128  # of the model frame, in the examples too; 8 patches of 16, masks of 32
MEAN = np.float32([123.675, 116.28, 103.53])


def make_backbone(**settings):
    """The backbone of the docstrings' examples, with fewer blocks."""
    keras.utils.set_random_seed(0)
    image_encoder = keras_hub.models.ViTDetBackbone(
        hidden_size=16,
        num_layers=3,
        intermediate_dim=16 * 4,
        num_heads=16,
        global_attention_layer_indices=[2, 5, 8, 11],
        patch_size=16,
        num_output_channels=8,
        window_size=2,
        image_shape=(SIDE, SIDE, 3),
        **settings,
    )
    prompt_encoder = keras_hub.layers.SAMPromptEncoder(
        hidden_size=8,
        image_embedding_size=(8, 8),
        input_image_size=(SIDE, SIDE),
        mask_in_channels=16,
        **settings,
    )
    mask_decoder = keras_hub.layers.SAMMaskDecoder(
        num_layers=2,
        hidden_size=8,
        intermediate_dim=32,
        num_heads=8,  # a channel each, of which the cross-attentions take half
        embedding_dim=8,
        num_multimask_outputs=3,
        iou_head_depth=3,
        iou_head_hidden_dim=8,
        **settings,
    )
    backbone = keras_hub.models.SAMBackbone(
        image_encoder=image_encoder, prompt_encoder=prompt_encoder, mask_decoder=mask_decoder
    )
    randomize(backbone, 3)
    return backbone


@pytest.fixture(scope="module")
def sam():
    return keras_hub.models.SAMImageSegmenter(backbone=make_backbone())


@pytest.fixture(scope="module")
def image():
    return photograph((SIDE, SIDE)).astype("float32")


@pytest.fixture
def global_policy():
    before = keras.config.dtype_policy()
    yield keras.mixed_precision.set_global_policy
    keras.config.set_dtype_policy(before)


def example_inputs(batch=2):
    """The input of the docstrings: all keys, masks absent by a length of zero."""
    return {
        "images": 255 * np.ones((batch, SIDE, SIDE, 3), "float32"),
        "points": np.ones((batch, 1, 2), "float32"),
        "labels": np.ones((batch, 1), "float32"),
        "boxes": np.ones((batch, 1, 2, 2), "float32"),
        "masks": np.zeros((batch, 0, SIDE, SIDE, 1)),
    }


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())


def to_numpy(x):
    return keras.ops.convert_to_numpy(keras.ops.cast(x, "float32"))


# --- the docstrings ---


@pytest.mark.every_backend
def test_custom_backbone_called_directly(sam):
    outputs = sam.backbone(example_inputs())
    shapes = {name: tuple(x.shape) for name, x in outputs.items()}
    assert (
        shapes.items()
        >= {
            "image_embeddings": (2, 8, 8, 8),
            "prompt_sparse_embeddings": (2, 3, 8),  # a point, a box's corners
            "prompt_dense_embeddings": (2, 8, 8, 8),
            "prompt_dense_positional_embeddings": (1, 8, 8, 8),
        }.items()
    )
    masks = sam.backbone.mask_decoder(**outputs)
    close(to_numpy(masks["masks"]), to_numpy(sam(example_inputs())["masks"]))


@pytest.mark.every_backend
def test_predict_on_all_five_keys(sam):
    outputs = sam.predict(example_inputs(), verbose=0)
    assert outputs["masks"].shape == (2, 4, 32, 32)
    assert outputs["iou_pred"].shape == (2, 4)
    direct = sam(example_inputs())
    assert set(direct) == {"masks", "iou_pred"}
    close(outputs["masks"], to_numpy(direct["masks"]))
    close(outputs["iou_pred"], to_numpy(direct["iou_pred"]))


def test_all_prompts_in_one_dict(sam, image):
    inputs = {
        "images": image[None],
        "points": np.array([[[64.0, 64.0], [12.0, 12.0]]]),
        "labels": np.array([[1.0, 0.0]]),
        "boxes": np.array([[[[48.0, 48.0], [80.0, 80.0]]]]),
        "masks": np.ones((1, 1, 32, 32, 1)),
    }
    outputs = sam.predict(inputs, verbose=0)
    assert outputs["masks"].shape == (1, 4, 32, 32)
    # Each of them says something.
    for key in (("points", "labels"), ("boxes",), ("masks",)):
        fewer = {k: v for k, v in inputs.items() if k not in key}
        assert np.abs(sam.predict(fewer, verbose=0)["masks"] - outputs["masks"]).max() > 1e-4


def test_points_and_box_without_the_mask(sam, image):
    inputs = {
        "images": image[None],
        "points": np.array([[[64.0, 64.0], [12.0, 12.0]]]),
        "labels": np.array([[1.0, 0.0]]),
        "boxes": np.array([[[[48.0, 48.0], [80.0, 80.0]]]]),
    }
    given = dict(inputs)
    masks = sam.predict(inputs, verbose=0)["masks"]
    placeholder = {**inputs, "masks": np.zeros((1, 0, 32, 32, 1))}
    close(masks, sam.predict(placeholder, verbose=0)["masks"])
    assert inputs.keys() == given.keys()  # KerasHub copies the dict before it fills it
    assert all(inputs[k] is given[k] for k in given)


def test_points_padded_with_a_zero_point_of_label_minus_one(sam, image):
    points, labels = np.array([[[64.0, 64.0], [12.0, 12.0]]]), np.array([[1.0, 0.0]])
    padded = {
        "images": image[None],
        "points": np.concatenate([points, np.zeros((1, 1, 2))], axis=1),
        "labels": np.concatenate([labels, -np.ones((1, 1))], axis=1),
    }
    bare = {"images": image[None], "points": points, "labels": labels}
    # There it had to be appended by hand. Here it may, and is not appended twice.
    close(sam.predict(padded, verbose=0)["masks"], sam.predict(bare, verbose=0)["masks"])
    close(to_numpy(sam(padded)["masks"]), to_numpy(sam(bare)["masks"]))


def test_placeholders_of_length_zero_are_no_prompts(sam, image):
    box = {"images": image[None], "boxes": np.array([[[[48.0, 48.0], [80.0, 80.0]]]])}
    absent = {
        "points": np.zeros((1, 0, 2)),
        "labels": np.zeros((1, 0)),
        "masks": np.zeros((1, 0, 32, 32, 1)),
    }
    expected = sam.predict(box, verbose=0)["masks"]
    close(sam.predict({**box, **absent}, verbose=0)["masks"], expected)
    close(to_numpy(sam({**box, **absent})["masks"]), expected)


def test_vit_det_backbone_of_its_docstring():
    model = keras_hub.models.ViTDetBackbone(
        image_shape=(16, 16, 3),
        patch_size=2,
        hidden_size=4,
        num_layers=2,
        global_attention_layer_indices=[2, 5, 8, 11],
        intermediate_dim=4 * 4,
        num_heads=2,
        num_output_channels=2,
        window_size=2,
    )
    assert tuple(model(np.ones((2, 16, 16, 3), "float32")).shape) == (2, 8, 8, 2)


# --- the guide ---


def inference_resizing(image):
    """The guide's helper: longest side to the frame, then the mean colour right and below."""
    image = keras.ops.cast(image, "float32")
    h, w = image.shape[:2]
    size = int(h * SIDE / max(h, w) + 0.5), int(w * SIDE / max(h, w) + 0.5)
    image = keras.ops.image.resize(image[None, ...], size)[0] - MEAN
    image = keras.ops.pad(image, [(0, SIDE - size[0]), (0, SIDE - size[1]), (0, 0)])
    return image + MEAN


@pytest.fixture(scope="module")
def truck():
    return inference_resizing(photograph((90, 160), seed=4))  # a tensor of the backend


@pytest.mark.every_backend
def test_point_prompt_on_a_tensor(sam, truck):
    input_point, input_label = np.array([[28, 21.5]]), np.array([1])
    outputs = sam.predict(
        {
            "images": truck[np.newaxis, ...],
            "points": np.concatenate([input_point[np.newaxis, ...], np.zeros((1, 1, 2))], axis=1),
            "labels": np.concatenate(
                [input_label[np.newaxis, ...], np.full((1, 1), fill_value=-1)], axis=1
            ),
        },
        verbose=False,
    )
    assert outputs["masks"].shape == (1, 4, 32, 32)
    assert outputs["iou_pred"].shape == (1, 4)
    mask = inference_resizing(outputs["masks"][0][0][..., None].repeat(3, axis=-1))
    assert tuple(mask.shape) == (SIDE, SIDE, 3)
    array = to_numpy(truck)[np.newaxis]
    again = sam.predict({"images": array, "points": [[[28, 21.5]]], "labels": [[1]]}, verbose=0)
    close(outputs["masks"], again["masks"])


def test_box_prompt_alone_and_with_a_background_point(sam, truck):
    input_box = np.array([[24, 34], [40, 50]])
    box = {"images": truck[np.newaxis, ...], "boxes": input_box[np.newaxis, np.newaxis, ...]}
    point = {"points": np.array([[32, 42]])[np.newaxis, ...], "labels": np.array([[0]])}
    alone, both = sam.predict(box, verbose=0), sam.predict({**box, **point}, verbose=0)
    assert alone["masks"].shape == both["masks"].shape == (1, 4, 32, 32)
    assert np.abs(alone["masks"] - both["masks"]).max() > 1e-4


def test_one_box_per_repeated_image(sam, truck):
    # The guide's detector gives boxes (N, 4); the image is repeated N times.
    image = to_numpy(truck)
    boxes = np.array([[24.0, 34.0, 40.0, 50.0], [5.0, 6.0, 70.0, 80.0], [0.0, 0.0, 9.0, 120.0]])
    outputs = sam.predict(
        {
            "images": np.repeat(image[np.newaxis, ...], boxes.shape[0], axis=0),
            "boxes": boxes.reshape(-1, 1, 2, 2),
        },
        batch_size=1,
        verbose=0,
    )
    assert outputs["masks"].shape == (3, 4, 32, 32)
    # What it costs one encoding here: all boxes of the one image.
    once = sam.predict({"images": image[np.newaxis], "boxes": boxes[np.newaxis]}, verbose=0)
    close(outputs["masks"], once["masks"][0])


def test_preset_takes_the_padded_image_as_it_is(sam, truck):
    # Presets have a preprocessor, which leaves an image of the frame's own size alone.
    from keras_sam.preprocessing import SAMImageSegmenterPreprocessor

    inputs = {"images": truck[np.newaxis, ...], "boxes": np.array([[[[24, 34], [40, 50]]]])}
    whole = keras_hub.models.SAMImageSegmenter(
        sam.backbone, SAMImageSegmenterPreprocessor.for_backbone(sam.backbone)
    )
    close(whole.predict(inputs, verbose=0)["masks"], sam.predict(inputs, verbose=0)["masks"])


@pytest.mark.every_backend
@pytest.mark.parametrize(
    ("policy", "bound"),
    [
        ("mixed_float16", 0.06),  # half of it where the processor sums up in float32
        ("bfloat16", 0.25),  # weights too; heads of one channel have nothing to average out
    ],
)
def test_global_policy(sam, truck, policy, bound, global_policy):
    if policy == "mixed_float16" and keras.backend.backend() == "jax":
        pytest.skip("JAX has no float16 convolutions and matrix products on a CPU")
    inputs = {"images": truck[np.newaxis, ...], "boxes": np.array([[[[24, 34], [40, 50]]]])}
    exact = sam.predict(inputs, verbose=0)
    global_policy(policy)
    half = keras_hub.models.SAMImageSegmenter(backbone=make_backbone())
    assert half.dtype_policy.name == policy
    assert half.backbone.image_encoder.get_layer("block_0").compute_dtype in policy
    half.set_weights(sam.get_weights())
    outputs = half.predict(inputs, verbose=False)
    assert np.isfinite(outputs["masks"]).all()
    difference = np.linalg.norm(outputs["masks"] - exact["masks"])
    assert 0 < difference < bound * np.linalg.norm(exact["masks"])


# --- the layers by themselves ---


# prompts, and how many sparse tokens they are
ALONE = [
    (("points", "labels", "boxes", "masks"), 4),
    (("points", "labels", "boxes"), 4),
    (("points", "labels"), 2),
    (("boxes",), 2),
    (("masks",), 0),
]


@pytest.mark.parametrize(("keys", "tokens"), ALONE)
def test_prompt_encoder_alone(keys, tokens):
    keras.utils.set_random_seed(1)
    encoder = keras_hub.layers.SAMPromptEncoder(
        hidden_size=32, image_embedding_size=(8, 8), input_image_size=(SIDE, SIDE)
    )
    prompts = {
        "points": np.random.default_rng(0).uniform(0, SIDE, (3, 2, 2)).astype("float32"),
        "labels": np.array([[1, 0], [1, 1], [0, 1]]),
        "boxes": np.array([[[[1, 2], [30, 40]]]] * 3, "float32"),
        "masks": np.random.default_rng(1).standard_normal((3, 1, 32, 32, 1)).astype("float32"),
    }
    outputs = encoder(**{k: prompts[k] for k in keys})
    assert tuple(outputs["prompt_sparse_embeddings"].shape) == (3, tokens, 32)
    assert tuple(outputs["prompt_dense_embeddings"].shape) == (3, 8, 8, 32)
    assert tuple(outputs["prompt_dense_positional_embeddings"].shape) == (1, 8, 8, 32)
    if "masks" not in keys:
        dense = to_numpy(outputs["prompt_dense_embeddings"])
        close(dense, np.broadcast_to(to_numpy(encoder.no_mask_embed), dense.shape))


@pytest.mark.every_backend
def test_mask_decoder_alone():
    keras.utils.set_random_seed(1)
    decoder = keras_hub.layers.SAMMaskDecoder(
        hidden_size=32, num_layers=2, intermediate_dim=24, num_heads=4, embedding_dim=32
    )
    rng = np.random.default_rng(0)
    outputs = decoder(
        image_embeddings=rng.standard_normal((2, 8, 8, 32)).astype("float32"),
        prompt_dense_positional_embeddings=rng.standard_normal((1, 8, 8, 32)).astype("float32"),
        prompt_sparse_embeddings=rng.standard_normal((2, 5, 32)).astype("float32"),
        prompt_dense_embeddings=rng.standard_normal((2, 8, 8, 32)).astype("float32"),
    )
    assert {k: tuple(v.shape) for k, v in outputs.items()} == {
        "masks": (2, 4, 32, 32),
        "iou_pred": (2, 4),
    }


def test_attention_layers_alone():
    from keras_sam import (
        MultiHeadAttentionWithDownsampling,
        TwoWayMultiHeadAttention,
        TwoWayTransformer,
    )

    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((2, 5, 16)).astype("float32")
    image = rng.standard_normal((2, 64, 16)).astype("float32")
    attention = MultiHeadAttentionWithDownsampling(num_heads=2, key_dim=8, downsample_rate=2)
    assert tuple(attention(query=tokens, value=image, key=image).shape) == (2, 5, 16)
    block = TwoWayMultiHeadAttention(
        num_heads=2, key_dim=8, intermediate_dim=24, skip_first_layer_pos_embedding=False
    )
    shapes = [
        tuple(x.shape)
        for x in block(
            queries=tokens, keys=image, query_pos_embedding=tokens, key_pos_embedding=image
        )
    ]
    assert shapes == [(2, 5, 16), (2, 64, 16)]
    transformer = TwoWayTransformer(num_layers=2, hidden_size=16, num_heads=2, intermediate_dim=24)
    grid = image.reshape(2, 8, 8, 16)
    queries, keys = transformer(
        image_embedding=grid, image_positional_embeddings=grid, point_embedding=tokens
    )
    assert [tuple(queries.shape), tuple(keys.shape)] == [(2, 5, 16), (2, 64, 16)]


def test_frequencies_encode_images_and_coordinates():
    from keras_sam import RandomFrequencyPositionalEmbeddings

    layer = RandomFrequencyPositionalEmbeddings(num_positional_features=6, scale=1)
    image = to_numpy(layer.encode_image((3, 5)))
    assert image.shape == (3, 5, 12)
    # The centre of the cell in row 2, column 1 of a grid of 3 x 5, on an image of 30 x 50 pixels.
    point = to_numpy(layer.encode_coordinates(np.array([[[15.0, 25.0]]]), (30, 50)))
    assert point.shape == (1, 1, 12)
    close(point[0, 0], image[2, 1])
    matrix = to_numpy(layer.gaussian_matrix)
    phase = 2 * np.pi * (2 * np.array([0.3, 5 / 6]) - 1) @ matrix
    np.testing.assert_allclose(image[2, 1], [*np.sin(phase), *np.cos(phase)], atol=1e-5)
    np.testing.assert_array_equal(to_numpy(layer(size=(3, 5))), image)


# Each class's arguments in KerasHub 0.32.
ARGUMENTS = {
    keras_hub.models.ViTDetBackbone: "hidden_size num_layers intermediate_dim num_heads "
    "global_attention_layer_indices image_shape patch_size num_output_channels use_bias "
    "use_abs_pos use_rel_pos window_size layer_norm_epsilon",
    keras_hub.models.SAMBackbone: "image_encoder prompt_encoder mask_decoder dtype",
    keras_hub.models.SAMImageSegmenter: "backbone preprocessor",
    keras_hub.models.SAMImageSegmenterPreprocessor: "image_converter",
    keras_hub.layers.SAMPromptEncoder: "hidden_size image_embedding_size input_image_size "
    "mask_in_channels activation",
    keras_hub.layers.SAMMaskDecoder: "hidden_size num_layers intermediate_dim num_heads "
    "embedding_dim num_multimask_outputs iou_head_depth iou_head_hidden_dim activation",
}


@pytest.mark.parametrize(
    ("cls", "names"), ARGUMENTS.items(), ids=lambda x: getattr(x, "__name__", "")
)
def test_arguments_have_their_names(cls, names):
    assert set(names.split()) <= set(inspect.signature(cls.__init__).parameters)


# class, its positional arguments in their order, and the documented defaults
DEFAULTS = [
    (
        keras_hub.models.ViTDetBackbone,
        "hidden_size num_layers intermediate_dim num_heads global_attention_layer_indices "
        "image_shape patch_size num_output_channels use_bias use_abs_pos use_rel_pos window_size "
        "layer_norm_epsilon",
        {
            "patch_size": 16,
            "num_output_channels": 256,
            "use_bias": True,
            "use_abs_pos": True,
            "use_rel_pos": True,
            "window_size": 14,
            "layer_norm_epsilon": 1e-6,
        },
    ),
    (
        keras_hub.models.SAMBackbone,
        "image_encoder prompt_encoder mask_decoder dtype",
        {"dtype": None},
    ),
    (keras_hub.models.SAMImageSegmenter, "backbone preprocessor", {"preprocessor": None}),
    (keras_hub.models.SAMImageSegmenterPreprocessor, "image_converter", {"image_converter": None}),
    (
        keras_hub.layers.SAMPromptEncoder,
        "",
        {
            "hidden_size": 256,
            "image_embedding_size": (64, 64),
            "input_image_size": (1024, 1024),
            "mask_in_channels": 16,
            "activation": "gelu",
        },
    ),
    (
        keras_hub.layers.SAMMaskDecoder,
        "",
        {
            "num_multimask_outputs": 3,
            "iou_head_depth": 3,
            "iou_head_hidden_dim": 256,
            "activation": "gelu",
        },
    ),
]


@pytest.mark.parametrize(
    ("cls", "order", "defaults"), DEFAULTS, ids=lambda x: getattr(x, "__name__", "")
)
def test_arguments_have_their_order_and_defaults(cls, order, defaults):
    parameters = inspect.signature(cls).parameters
    assert [*parameters][: len(order.split())] == order.split()
    assert {name: parameters[name].default for name in defaults} == defaults


def test_converter_has_the_order_of_its_arguments():
    names = "image_size scale offset crop_to_aspect_ratio pad_to_aspect_ratio interpolation "
    names += "antialias bounding_box_format data_format"
    made = inspect.signature(keras_hub.layers.ImageConverter.__new__).parameters
    assert [*made][1:10] == names.split()


# --- names, presets, and what presets hold ---


@pytest.mark.parametrize("place", ["models", "layers"])
def test_everything_can_be_imported_from(place):
    module = importlib.import_module(f"keras_sam.compat.keras_hub.{place}")
    assert module is getattr(keras_hub, place)
    assert all(inspect.isclass(getattr(module, name)) for name in module.__all__)


def test_versions_under_their_names():
    assert keras_hub.version() == keras_hub.__version__ == "0.32.0"
    assert keras_cv.version() == keras_cv.__version__ == "0.9.0"


def test_base_classes_under_their_names(sam):
    models, layers = keras_hub.models, keras_hub.layers
    assert issubclass(models.SAMImageSegmenter, models.ImageSegmenter)
    assert issubclass(models.SAMImageSegmenter, models.Task)
    assert issubclass(models.SAMBackbone, models.Backbone)
    assert issubclass(models.SAMImageSegmenterPreprocessor, models.ImageSegmenterPreprocessor)
    assert issubclass(models.SAMImageSegmenterPreprocessor, models.Preprocessor)
    assert issubclass(layers.SAMImageConverter, layers.ImageConverter)
    assert models.SAMImageSegmenter.backbone_cls is models.SAMBackbone
    assert models.SAMImageSegmenter.preprocessor_cls is models.SAMImageSegmenterPreprocessor
    assert isinstance(sam, models.Task)
    assert isinstance(sam.backbone, models.Backbone)
    assert isinstance(sam.backbone.image_encoder, models.Backbone)


def test_presets_of_each_class():
    whole = ["sam_base_sa1b", "sam_large_sa1b", "sam_huge_sa1b"]
    models, layers = keras_hub.models, keras_hub.layers
    for cls in (
        models.SAMBackbone,
        models.SAMImageSegmenter,
        models.ImageSegmenter,
        models.SAMImageSegmenterPreprocessor,
        models.Preprocessor,
        layers.SAMImageConverter,
        layers.ImageConverter,
    ):
        assert [name for name in cls.presets if name in whole] == whole
        assert cls.presets["sam_base_sa1b"]["description"]
    assert "vitdet_base_sa1b" in models.ViTDetBackbone.presets


@pytest.mark.parametrize("name", ["base", "large", "huge"])
def test_short_names_of_its_first_releases(name):
    short, full = (
        keras_sam.presets.read_preset(f"sam_{name}{end}", load_weights=False)
        for end in ("", "_sa1b")
    )
    assert short == full
    assert set(short.parts) == {"image_encoder", "prompt_encoder", "mask_decoder"}


def test_a_folder_of_a_short_name_is_that_folder(sam, tmp_path, monkeypatch):
    sam.save_to_preset(tmp_path / "sam_base")
    monkeypatch.chdir(tmp_path)
    preset = keras_sam.presets.read_preset("sam_base", load_weights=False)
    assert preset.encoder["image_shape"] == [SIDE, SIDE, 3]


def test_preprocessor_and_converter_of_a_preset(tiny_presets):
    models, layers = keras_hub.models, keras_hub.layers
    frame = (112, 144)
    for cls in (models.SAMImageSegmenterPreprocessor, models.ImageSegmenterPreprocessor):
        preprocessor = cls.from_preset("sam_base_sa1b")
        assert preprocessor.image_size == preprocessor.image_converter.image_size == frame
        made = preprocessor({"images": [photograph((60, 90))], "boxes": [[[1, 2, 30, 20]]]})
        assert made["images"].shape == (1, *frame, 3)
    for cls in (layers.SAMImageConverter, layers.ImageConverter):
        converter = cls.from_preset("sam_base_sa1b")
        assert isinstance(converter, layers.ImageConverter)
        assert converter.image_size == frame
        assert converter(photograph((60, 90))).shape == (*frame, 3)
        assert cls.from_preset("sam_base_sa1b", image_size=(64, 96)).image_size == (64, 96)
    task = models.Task.from_preset("sam_base_sa1b")
    assert isinstance(task, models.SAMImageSegmenter)
    assert task.preprocessor.image_converter.image_size == frame


# arguments, and pixels 0, 51 and 255 of a channel afterwards
SCALES = [
    ({}, [0, 51, 255]),
    ({"scale": 1 / 255}, [0, 0.2, 1]),
    ({"scale": 2 / 255, "offset": -1}, [-1, -0.6, 1]),
    ({"offset": 5.0}, [5, 56, 260]),
    ({"scale": (1, 1, 0.5), "offset": (9, 9, -2)}, [-2, 23.5, 125.5]),
    ({"scale": (1, 1, 0.5)}, [0, 25.5, 127.5]),
]


@pytest.mark.parametrize(("settings", "expected"), SCALES)
def test_converter_scales_and_adds(settings, expected):
    images = np.tile(np.uint8([0, 51, 255])[None, :, None, None], (2, 1, 3, 3))
    converter = keras_hub.layers.ImageConverter((3, 3), **settings)
    np.testing.assert_allclose(converter(images)[1, :, 2, 2], expected, rtol=1e-5, atol=1e-5)
    again = type(converter).from_config(converter.get_config())
    np.testing.assert_array_equal(again(images), converter(images))


def test_converter_of_its_docstring():
    converter = keras_hub.layers.ImageConverter(image_size=(128, 128), scale=1.0 / 255)
    images = np.random.default_rng(0).integers(0, 256, (2, 512, 512, 3))
    made = converter(images)
    assert made.shape == (2, 128, 128, 3)
    assert 0 <= made.min() < made.max() <= 1
    assert type(converter) is keras_sam.SAMImageConverter
    assert isinstance(converter, keras_hub.layers.SAMImageConverter)


def test_converter_without_a_size_leaves_images_as_they_are():
    images = photograph((20, 30))[None]
    np.testing.assert_array_equal(keras_hub.layers.ImageConverter()(images), images)


def test_converter_reads_channels_first_and_interpolates():
    image = photograph((40, 50))
    settings = {"interpolation": "lanczos3", "antialias": False}
    last = keras_hub.layers.ImageConverter((24, 24), **settings)
    first = keras_hub.layers.ImageConverter((24, 24), data_format="channels_first", **settings)
    assert last.resample == "lanczos"
    np.testing.assert_array_equal(first(np.moveaxis(image, -1, 0)), last(image))


@pytest.mark.parametrize(
    "settings", [{"crop_to_aspect_ratio": True}, {"pad_to_aspect_ratio": False}]
)
def test_converter_neither_crops_nor_distorts(settings):
    with pytest.raises(ValueError, match="must be False and `pad_to_aspect_ratio` True"):
        keras_hub.layers.SAMImageConverter(image_size=(128, 128), **settings)


def test_enable_lora_of_a_backbone():
    backbone = make_backbone()
    backbone.enable_lora(4)
    names = {v.path.rsplit("/", 1)[1] for v in backbone.trainable_variables}
    assert names == {"lora_kernel_a", "lora_kernel_b"}
    assert len(backbone.trainable_variables) == 2 * 2 * 3  # two layers of three blocks
    encoder = make_backbone().image_encoder
    encoder.enable_lora(rank=4, target_layer_names=["qkv"])
    assert len(encoder.trainable_variables) == 2 * 3
    with pytest.raises(ValueError, match="names of dense layers.*Received: .'query'"):
        make_backbone().enable_lora(4, ["query"])


def test_backbone_with_lora_learns_in_its_task():
    backbone = make_backbone()
    backbone.enable_lora(2)
    sam = keras_hub.models.SAMImageSegmenter(backbone=backbone)
    before = {v.path: to_numpy(v) for v in sam.weights}
    sam.compile(optimizer=keras.optimizers.SGD(0.1))
    target = np.zeros((1, SIDE, SIDE), "uint8")
    target[:, 20:60, 30:80] = 1
    inputs = {"images": photograph((SIDE, SIDE))[None], "boxes": [[[[30, 20], [80, 60]]]]}
    sam.fit(inputs, {"masks": target}, verbose=0)
    changed = {p for p in before if np.any(before[p] != to_numpy(dict_of(sam.weights)[p]))}
    assert changed
    assert all("lora_kernel" in path for path in changed)


def dict_of(variables):
    return {v.path: v for v in variables}


def test_upload_preset_takes_their_arguments(sam, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(keras_sam.presets, "upload_preset", lambda *a, **k: calls.append((a, k)))
    keras_hub.upload_preset(uri="hf://me/sam", preset=tmp_path)
    keras_hub.upload_preset("kaggle://me/sam/keras/base", tmp_path)
    assert calls == [
        (("hf://me/sam", tmp_path), {}),
        (("kaggle://me/sam/keras/base", tmp_path), {}),
    ]
    monkeypatch.undo()
    with pytest.raises(ValueError, match="one that `save_to_preset` wrote"):
        keras_hub.upload_preset("hf://me/sam", tmp_path / "nothing")


def test_preset_names_are_the_built_in_ones():
    assert keras_hub.models.SAMBackbone.presets == list_presets()
