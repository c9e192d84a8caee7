"""What people wrote for KerasHub's Segment Anything, with only the import changed.

After the examples in KerasHub 0.32's docstrings of `models/sam` and `models/vit_det`, and
keras.io's guide "Segment Anything in KerasHub", at small sizes.
"""

import inspect

import keras
import numpy as np
import pytest

from keras_sam.compat import keras_hub
from tests.tiny import photograph, randomize

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
