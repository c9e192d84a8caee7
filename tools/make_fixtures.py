"""Writes the small checkpoints in tests/fixtures with the libraries that define their formats.

Run it once in an environment of each library; this package is not needed:

    python tools/make_fixtures.py tests/fixtures/keras_hub_0_32

It writes a preset folder, a `.keras` file and `expected.npz`: an image, prompts, and the masks
that the library itself predicts for them. Every weight is random, none keeps its initial value.
"""

import argparse
import json
import shutil
from pathlib import Path

import keras
import numpy as np

SIDE, PATCH, WINDOW = 56, 8, 3  # a grid of 7 x 7 patches, so that windows need padding
HIDDEN, HEADS, LAYERS, GLOBAL = 24, 3, 3, [1]
CHANNELS, MLP, DECODER_HEADS = 16, 20, 4


def keras_hub_model():
    import keras_hub

    encoder = keras_hub.models.ViTDetBackbone(
        hidden_size=HIDDEN,
        num_layers=LAYERS,
        intermediate_dim=40,
        num_heads=HEADS,
        global_attention_layer_indices=GLOBAL,
        image_shape=(SIDE, SIDE, 3),
        patch_size=PATCH,
        num_output_channels=CHANNELS,
        window_size=WINDOW,
    )
    prompts = keras_hub.layers.SAMPromptEncoder(
        hidden_size=CHANNELS,
        image_embedding_size=(SIDE // PATCH, SIDE // PATCH),
        input_image_size=(SIDE, SIDE),
        mask_in_channels=8,
    )
    decoder = keras_hub.layers.SAMMaskDecoder(
        hidden_size=CHANNELS,
        num_layers=2,
        intermediate_dim=MLP,
        num_heads=DECODER_HEADS,
        embedding_dim=CHANNELS,
        iou_head_hidden_dim=12,
    )
    backbone = keras_hub.models.SAMBackbone(
        image_encoder=encoder, prompt_encoder=prompts, mask_decoder=decoder
    )
    return keras_hub.models.SAMImageSegmenter(backbone), backbone, keras_hub.__version__


def keras_cv_model():
    import keras_cv
    from keras_cv.src.models.segmentation.segment_anything.sam_transformer import TwoWayTransformer

    encoder = keras_cv.models.ViTDetBackbone(
        include_rescaling=False,
        input_shape=(SIDE, SIDE, 3),
        patch_size=PATCH,
        embed_dim=HIDDEN,
        depth=LAYERS,
        mlp_dim=40,
        num_heads=HEADS,
        out_chans=CHANNELS,
        window_size=WINDOW,
        global_attention_indices=GLOBAL,
    )
    prompts = keras_cv.models.SAMPromptEncoder(
        embed_dim=CHANNELS,
        image_embedding_size=(SIDE // PATCH, SIDE // PATCH),
        input_image_size=(SIDE, SIDE),
        mask_in_chans=8,
    )
    decoder = keras_cv.models.SAMMaskDecoder(
        transformer_dim=CHANNELS,
        transformer=TwoWayTransformer(
            depth=2, embed_dim=CHANNELS, num_heads=DECODER_HEADS, mlp_dim=MLP
        ),
        iou_head_hidden_dim=12,
    )
    model = keras_cv.models.SegmentAnythingModel(
        backbone=encoder, prompt_encoder=prompts, mask_decoder=decoder
    )
    return model, model, keras_cv.__version__


def randomize(model):
    rng = np.random.default_rng(3)
    for variable in model.weights:
        noise = rng.standard_normal(variable.shape).astype("float32")
        variable.assign(variable + 0.2 * noise)


def predict(model, image, points=None, labels=None, boxes=None, masks=None):
    """The masks of one prompt; what is absent is an axis of length zero."""
    side = 4 * SIDE // PATCH
    inputs = {
        "images": image[None] / 255.0,
        "points": np.zeros((1, 0, 2), "float32") if points is None else points,
        "labels": np.zeros((1, 0), "float32") if labels is None else labels,
        "boxes": np.zeros((1, 0, 2, 2), "float32") if boxes is None else boxes,
        "masks": np.zeros((1, 0, side, side, 1), "float32") if masks is None else masks,
    }
    outputs = model(inputs)
    return [np.asarray(keras.ops.convert_to_numpy(outputs[k]))[0] for k in ("masks", "iou_pred")]


def parse(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--library", choices=("keras_hub", "keras_cv"), default="keras_hub")
    return parser.parse_args(arguments)


def main():
    options = parse()
    keras.utils.set_random_seed(5)
    make = keras_hub_model if options.library == "keras_hub" else keras_cv_model
    model, backbone, version = make()
    side = 4 * SIDE // PATCH
    rng = np.random.default_rng(4)
    image = rng.uniform(0, 255, (SIDE, SIDE, 3)).astype("float32")
    points = np.array([[[20.5, 31.0], [40.0, 11.0], [0.0, 0.0]]], "float32")
    labels = np.array([[1.0, 0.0, -1.0]], "float32")
    boxes = np.array([[[[9.0, 12.0], [41.0, 50.5]]]], "float32")
    masks = rng.standard_normal((1, 1, side, side, 1)).astype("float32")
    predict(model, image, points, labels)  # builds what is built at the first call
    randomize(model)
    expected = {"image": image, "points": points, "labels": labels, "boxes": boxes, "masks": masks}
    calls = {
        "points": {"points": points, "labels": labels},
        "box": {"boxes": boxes},
        "mask": {"points": points, "labels": labels, "masks": masks},
    }
    for name, prompts in calls.items():
        expected[f"{name}_masks"], expected[f"{name}_iou_pred"] = predict(model, image, **prompts)
    shutil.rmtree(options.folder, ignore_errors=True)
    if options.library == "keras_hub":
        backbone.save_to_preset(str(options.folder))
    else:
        from keras_cv.src.utils.preset_utils import save_to_preset

        save_to_preset(model, str(options.folder))
    model.save(options.folder / "model.keras")
    np.savez_compressed(options.folder / "expected.npz", **expected)
    (options.folder / "written_by.json").write_text(
        json.dumps({options.library: version, "keras": keras.__version__}) + "\n"
    )
    for path in sorted(options.folder.iterdir()):
        print(path, path.stat().st_size)


if __name__ == "__main__":
    main()
