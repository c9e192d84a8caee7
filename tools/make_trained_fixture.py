"""Trains the small SAM that the tests of automatic masks need, on drawn scenes.

Random weights make masks as large as the image, of which suppression leaves one. This model of
280 k weights, at 128 x 128, gives a mask of its own to every click.

    KERAS_BACKEND=torch python -m tools.make_trained_fixture tests/fixtures/sam_shapes.safetensors

takes 20 minutes on one core. The file has Meta's names, in float16, for `from_preset`.
"""

import argparse
import time

import keras
import numpy as np

import keras_sam
from keras_sam import converters
from keras_sam.models.sam_image_segmenter import preprocessor_for
from keras_sam.presets.save import save_safetensors
from keras_sam.training import SAMTrainer
from tests.scenes import scene

SIDE, PATCH, CHANNELS = 128, 8, 48
BATCH, PROMPTS = 2, 8  # scenes in a step, and objects of each scene that are clicked on


def build():
    backbone = keras_sam.SAMBackbone(
        keras_sam.ViTDetBackbone(
            hidden_size=64,
            num_layers=4,
            intermediate_dim=128,
            num_heads=4,
            global_attention_layer_indices=[1, 3],
            image_shape=(SIDE, SIDE, 3),
            patch_size=PATCH,
            num_output_channels=CHANNELS,
            window_size=7,
        ),
        keras_sam.SAMPromptEncoder(
            hidden_size=CHANNELS,
            image_embedding_size=(SIDE // PATCH, SIDE // PATCH),
            input_image_size=(SIDE, SIDE),
            mask_in_channels=8,
        ),
        keras_sam.SAMMaskDecoder(
            hidden_size=CHANNELS, intermediate_dim=96, num_heads=8, iou_head_hidden_dim=48
        ),
    )
    return keras_sam.SAMImageSegmenter(backbone, preprocessor_for(backbone))


class Scenes(keras.utils.PyDataset):
    """New scenes in every step: few large objects, or many small ones."""

    def __init__(self, steps, batch, seed):
        super().__init__(workers=1)
        self.steps, self.batch, self.seed = steps, batch, seed

    @property
    def num_batches(self):
        return self.steps

    def __getitem__(self, index):
        images, targets = [], []
        for i in range(self.batch):
            rng = np.random.default_rng([self.seed, index, i])
            cells = rng.integers(2, 8, 2)
            image, masks = scene((SIDE, SIDE), cells, [self.seed, index, i, 1])
            masks = masks[masks.sum(axis=(1, 2)) >= 24]
            if not len(masks):
                image, masks = scene((SIDE, SIDE), (2, 2), [self.seed, index, i], filled=1)
            images.append(image)
            targets.append(masks[rng.choice(len(masks), PROMPTS, replace=len(masks) < PROMPTS)])
        return {"images": images}, {"masks": targets}


def train(segmenter, path, steps, peak, seed, num_clicks, box_probability):
    """One stage: AdamW, a short warm-up, then a cosine down to a twentieth of the peak."""
    trainer = SAMTrainer(
        segmenter,
        num_clicks=num_clicks,
        mask_rounds=False,
        box_probability=box_probability,
        seed=seed,
    )
    schedule = keras.optimizers.schedules.CosineDecay(
        peak / 20, steps, alpha=0.05, warmup_target=peak, warmup_steps=min(100, steps // 10)
    )
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=0.01, global_clipnorm=1.0)
    trainer.compile(optimizer=optimizer)
    start = time.monotonic()

    def report(step, logs):
        if step % 50 == 0:
            print(f"{step:5d} {time.monotonic() - start:6.0f} s", logs, flush=True)
        if step % 250 == 249:
            trainer.reset_metrics()
            save(segmenter, path)

    callback = keras.callbacks.LambdaCallback(on_train_batch_end=report)
    trainer.fit(Scenes(steps, BATCH, seed), verbose=0, callbacks=[callback])
    save(segmenter, path)


def save(segmenter, path):
    arrays = {v.path: keras.ops.convert_to_numpy(v) for v in segmenter.backbone.weights}
    tensors = {name: np.asarray(x, "float16") for name, x in converters.to_meta(arrays).items()}
    save_safetensors(path, tensors, {"format": "pt"})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path")
    parser.add_argument("--steps", type=int, default=4500, help="with single clicks")
    parser.add_argument("--more-steps", type=int, default=300, help="with a second click")
    parser.add_argument("--peak", type=float, default=1.5e-3, help="learning rate")
    options = parser.parse_args()
    keras.utils.set_random_seed(11)
    segmenter = build()
    print(f"{segmenter.count_params()} weights", flush=True)
    train(segmenter, options.path, options.steps, options.peak, 1, 0, 0.0)
    if options.more_steps:
        train(segmenter, options.path, options.more_steps, options.peak / 4, 2, 1, 0.25)


if __name__ == "__main__":
    main()
