"""Trains `sam_tiny_demo`, the small SAM that ships with the package, from scratch on drawn scenes.

    python -m tools.demo_photographs PHOTOGRAPHS PREPARED
    KERAS_BACKEND=torch python -m tools.train_demo_preset WORK_FOLDER --photographs PREPARED

It can be stopped at any time, and goes on where it was when it is started again with the same
folder. The schedules follow the processor's time, so a slower machine makes fewer steps in it.
With new weights, `tools/recommend_demo_settings.py` has to choose again what the preset recommends,
and `tools/choose_generator_settings.py` what the tests compare.

The weights that ship: seed 5, mixed bfloat16 on PyTorch, one core, shared with other work. First 77
minutes of an Intel Xeon with AMX: 2,050 steps at 128 x 128 and 7,450 at 256 x 256, 37,000 scenes.
The first 650 steps were with two scenes each, the rest with four; the scenes were still being tuned
on the way, the disks last, 32 minutes into the second part. Then 78 minutes of an AMD EPYC, some
twenty of which it stood still: 2,850 steps with scenes enlarged to 512 x 512, begun by `--start`.
So a run of today's tool is not the same run. Loss and mIoU on the way are in the preset's
metadata.json, under `training`.

Measured by `tools/measure_demo_preset.py`, 24 held-out scenes with 357 objects, and the 24 coins of
scikit-image's photograph; `before` is without the last part:

    mIoU                        scenes  before  wanted    coins  before  wanted
    one click, best of three    0.828   0.730   0.80      0.940  0.856   0.75
    box                         0.840   0.773   0.88      0.935  0.886   0.85
    nine clicks                 0.824   0.741   0.88      0.918  0.844
    coins found without prompts at IoU 0.7                24     23      20

The weights that ship are without the fourth part, which `--start` begins: over half photographs,
whose masks are regions that stand out (`tools/demo_photographs.py`, which names its sources). Its
80 minutes of one core, 2,250 steps in float32 on 85 photographs and 27 cut-outs, gave less: scenes
0.800, 0.816 and 0.808 in the rows above, coins 0.931, 0.929 and 0.924. On photographs of a car's
boot, a dog and a truck, clicks and boxes follow edges further than before, but the model is surer
that its masks are bad: of 24 x 24 points 0, 19 and 10 masks have a predicted IoU of 0.4 (before 56,
152 and 104, most of them blobs), none has 0.7. With the other parts that is four hours of one core.
Its loss fell from 0.62 to 0.55 in all that time: a larger model, and masks that people drew, would
be the next to try.

Tried before in its place, and no gain: compositions (`tools/demo_compositions.py`), drawn scenes
closer to photographs. 1,150 steps, 53 minutes of one core in float32: held-out scenes 0.825, 0.836
and 0.814 in the rows above, coins 0.929, 0.924 and 0.910, and on photographs fewer masks of things
than before, at any thresholds. Its loss was falling still. On a processor without bfloat16 of its
own, a step in float32 (`--dtype`) takes half as long.

The scenes miss what was wanted from the box and from nine clicks by 0.04 and 0.06. From the box,
objects of fewer than 256 pixels come to 0.67 and those that fill less than two fifths of their box
(strokes, what is left of hidden shapes) to about 0.5, compact ones of 2,000 pixels to 0.93; and the
last part was short: its loss was still falling. Tried before, and worse: frames of 256 with
patches of 8 from the start, four times as slow (nothing learnt in 400 steps), and the released
code's initial weights (mIoU below 0.1 after 1,300 steps at 128). It is a demonstration: it knows
shapes, not things, and most photographs confuse it.
"""

import argparse
import csv
import dataclasses
import json
import math
import time
from pathlib import Path

import keras
import numpy as np
from PIL import Image

import keras_sam
from keras_sam.files import whole_file, whole_folder
from keras_sam.losses import SAMLoss
from keras_sam.preprocessing import SAMImageSegmenterPreprocessor
from keras_sam.presets.adapt import fit_position_tables
from keras_sam.presets.locate import WEIGHTS_FILE
from keras_sam.presets.write import save_hdf5, save_json
from keras_sam.training import SAMTrainer
from tools.demo_compositions import composition
from tools.demo_photographs import Photographs
from tools.demo_scenes import SIDE, SMALLEST, scene

ROOT = Path(__file__).resolve().parent.parent
TOKENS, HIDDEN, LAYERS, CHANNELS = 16, 192, 6, 128
SEED = 5
STEPS = 50  # of an epoch, after which everything is logged and kept
LIMITS = (
    "It knows shapes, not things: coins, balls and tiles it finds, in most photographs of things "
    "its masks are rags. For photographs take sam_base_sa1b, Meta's ViT-B (375 MB, downloaded "
    "once)."
)
COLUMNS = ("part", "step", "seconds", "clicks", "learning_rate", "loss", "miou", "iou_error")


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of the training with a schedule of its own.

    Args:
        side: int, of the model frame.
        minutes: float, of one core's time.
        schedule: float. Minutes after which the learning rate would reach its end.
        loss: the focal loss's weight and alpha. Small objects on large grounds: as in the paper
            (20 and 0.25), a model that has learnt nothing yet settles for empty masks.
        stages: tuples of the part of the time until which they last, clicks after the first
            prompt, objects of a scene, and the share of boxes.
        tokens: int. Patches along a side.
        batch: int. Scenes of a step.
        peak: float. Learning rate after the warm-up.
        easy: float. Part of the time in which plain scenes get fewer.
        composed: float. Share of the scenes that are compositions, drawn at the side of 512.
        photographed: float. Share of the scenes that are photographs.
    """

    side: int
    minutes: float
    schedule: float
    loss: tuple[float, float]
    stages: tuple
    tokens: int = TOKENS
    batch: int = 4
    peak: float = 7e-4
    easy: float = 0.0
    composed: float = 0.0
    photographed: float = 0.0


# Patches of 8 at half the size cost a quarter, and become patches of 16 without any loss. In the
# end scenes are enlarged twice, for most objects have the size of one or two patches.
PARTS = (
    Part(SIDE // 2, 13, 50, (2.0, 0.6), ((1.0, 0, 8, 0.3),), easy=2.0),
    Part(SIDE, 67, 67, (8.0, 0.4), ((0.62, 0, 8, 0.4), (0.88, 1, 8, 0.5), (1.0, 3, 4, 0.4))),
    Part(
        2 * SIDE,
        78,
        80,
        (8.0, 0.4),
        ((0.45, 0, 8, 0.5), (0.75, 1, 8, 0.5), (1.0, 4, 5, 0.4)),
        tokens=2 * TOKENS,
        batch=2,
        peak=5e-4,
    ),
    Part(
        2 * SIDE,
        80,
        80,
        (8.0, 0.4),
        ((0.5, 0, 10, 0.4), (0.8, 1, 8, 0.5), (1.0, 4, 5, 0.4)),
        tokens=2 * TOKENS,
        batch=2,
        peak=4e-4,
        composed=0.1,
        photographed=0.55,
    ),
)


def build(side=PARTS[-1].side, tokens=PARTS[-1].tokens, dtype=None):
    grid = (tokens, tokens)
    backbone = keras_sam.SAMBackbone(
        keras_sam.ViTDetBackbone(
            hidden_size=HIDDEN,
            num_layers=LAYERS,
            intermediate_dim=2 * HIDDEN,
            num_heads=HIDDEN // 32,
            global_attention_layer_indices=[2, 5],
            image_shape=(side, side, 3),
            patch_size=side // tokens,
            num_output_channels=CHANNELS,
            use_rel_pos=False,
            window_size=8,
            dtype=dtype,
        ),
        keras_sam.SAMPromptEncoder(
            hidden_size=CHANNELS,
            image_embedding_size=grid,
            input_image_size=(side, side),
            mask_in_channels=16,
            dtype=dtype,
        ),
        keras_sam.SAMMaskDecoder(
            hidden_size=CHANNELS,
            intermediate_dim=4 * CHANNELS,
            num_heads=8,
            iou_head_hidden_dim=CHANNELS,
            dtype=dtype,
        ),
        dtype=dtype,
    )
    return keras_sam.SAMImageSegmenter(
        backbone, SAMImageSegmenterPreprocessor.for_backbone(backbone)
    )


def array(variable):
    return keras.ops.convert_to_numpy(variable)


def begin(segmenter):
    """Values to start from with which a click means something from the first step on.

    The encoder's positions start as the prompts' own, and in the decoder what is alike attends to
    each other: queries and keys start equal. Kernels of the released code's start are too small for
    a prompt to reach the mask through all layers. Without these, thousands of steps teach nothing
    but how large objects are.
    """
    weights = {v.path: v for v in segmenter.weights}
    table = weights["position_embedding/embeddings"]
    positions = array(segmenter.prompt_encoder.positional_embedding.encode_image((TOKENS, TOKENS)))
    values = np.zeros(table.shape, "float32")
    values[..., : positions.shape[-1]] = positions
    table.assign(values)
    for path, query in weights.items():
        if "mask_decoder/transformer" in path and path.endswith("query_proj/kernel"):
            weights[path.replace("query", "key")].assign(array(query))
    for path, kernel in weights.items():
        if "mask_decoder" in path and path.endswith("kernel"):
            kernel.assign(1.7 * array(kernel))


def assign(segmenter, values):
    """Takes over weights, those of another frame, too.

    Patches twice as large average pixels in fours; positions of more tokens lie between the old.
    """
    encoder = segmenter.image_encoder
    values = fit_position_tables(values, encoder.get_config())
    for variable in segmenter.weights:
        value = np.asarray(values[variable.path])
        if value.shape != variable.shape:
            value = value.repeat(2, axis=0).repeat(2, axis=1) / 4
        variable.assign(value)


class Scenes(keras.utils.PyDataset):
    """New scenes in every step, and some of each scene's objects."""

    def __init__(self, part, number, first, objects, progress, photographs):
        super().__init__(workers=1)
        self.part, self.number, self.first, self.objects = part, number, first, objects
        self.plain = 1.0 - progress / part.easy if part.easy else 0.0
        self.photographs = photographs

    @property
    def num_batches(self):
        return STEPS

    def __getitem__(self, index):
        images, targets = [], []
        for i in range(self.part.batch):
            seed = (SEED, self.number, self.first + index, i)
            rng = np.random.default_rng((*seed, 1))
            kind = rng.random()
            if kind < self.part.photographed:
                image, masks = self.photographs.scene(seed)
            elif kind < self.part.photographed + self.part.composed:
                image, masks = composition(seed)
            else:
                image, masks = scene(seed, "easy" if rng.random() < self.plain else None)
            if self.part.side < SIDE:
                image, masks = half(image, masks)
            again = len(masks) < self.objects
            # Most of what is in a composition or a photograph are small parts.
            likely = masks.sum(axis=(1, 2)) ** (0.25 if self.part.photographed else 0.0)
            likely = likely / likely.sum()
            images.append(image)
            targets.append(masks[rng.choice(len(masks), self.objects, replace=again, p=likely)])
        return {"images": images}, {"masks": targets}


def half(image, masks):
    """A scene at half its size, without what is too small for that."""
    kept = masks[masks.sum(axis=(1, 2)) >= 2 * SMALLEST]
    return np.asarray(Image.fromarray(image).reduce(2)), (kept if len(kept) else masks)[:, ::2, ::2]


class Work:
    """What a run needs to go on, in one file: weights, optimizer, and how far it is."""

    def __init__(self, folder):
        self.path, self.log = Path(folder) / "state.npz", Path(folder) / "log.csv"
        self.number, self.step, self.seconds, self.arrays = 0, 0, 0.0, {}
        if self.path.exists():
            with np.load(self.path) as file:
                self.arrays = dict(file)
            self.number, self.step = int(self.arrays["part"]), int(self.arrays["step"])
            self.seconds = float(self.arrays["seconds"])

    def load(self, segmenter, optimizer):
        if not self.arrays:
            begin(segmenter)
            return
        assign(segmenter, {k[2:]: v for k, v in self.arrays.items() if k.startswith("w/")})
        if self.step:  # otherwise the weights are those of the part before
            own = {k[2:]: v for k, v in self.arrays.items() if k.startswith("o/")}
            optimizer.load_own_variables(own)

    def save(self, segmenter, optimizer, row):
        own = {}
        optimizer.save_own_variables(own)
        self.arrays = {f"w/{v.path}": array(v) for v in segmenter.weights}
        self.arrays |= {f"o/{k}": np.asarray(v) for k, v in own.items()}
        self.keep()
        new = not self.log.exists()
        with open(self.log, "a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if new:
                writer.writeheader()
            writer.writerow(row)
        print(row, flush=True)

    def keep(self):
        self.arrays |= {"part": self.number, "step": self.step, "seconds": self.seconds}
        with whole_file(self.path) as file:
            np.savez(file, **self.arrays)

    def start_from(self, preset):
        """Begins the last part, with the weights of a preset."""
        loaded = keras_sam.SAMImageSegmenter.from_preset(str(preset))
        self.arrays = {f"w/{v.path}": array(v) for v in loaded.weights}
        self.number = len(PARTS) - 1
        self.keep()

    def next_part(self):
        self.number, self.step, self.seconds = self.number + 1, 0, 0.0
        self.keep()


def learning_rate(peak, progress):
    """A short warm-up, then a cosine down to a fiftieth."""
    if progress < 0.02:
        return peak * max(progress / 0.02, 0.02)
    return peak * (0.02 + 0.98 * (1 + math.cos(math.pi * min(progress, 1.0))) / 2)


def train(part, work, dtype, photographs):
    segmenter = build(part.side, part.tokens, dtype)
    optimizer = keras.optimizers.AdamW(
        part.peak, weight_decay=0.02, beta_2=0.99, global_clipnorm=1.0
    )
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta", "embedding", "token"])
    optimizer.build(segmenter.trainable_variables)
    work.load(segmenter, optimizer)
    print(
        f"side {part.side}: {segmenter.count_params()} weights, {work.step} steps done", flush=True
    )
    stage, budget = None, 60 * part.minutes
    while work.seconds < budget:
        progress = work.seconds / budget
        now = next(stage for stage in part.stages if progress < stage[0])
        if now is not stage:
            stage = now
            _, clicks, objects, boxes = stage
            trainer = SAMTrainer(
                segmenter, clicks, mask_rounds=False, box_probability=boxes, seed=SEED
            )
            weight, alpha = part.loss
            trainer.compile(optimizer=optimizer, loss=SAMLoss(weight, alpha=alpha))
        began = time.process_time()
        rate = learning_rate(part.peak, work.seconds / (60 * part.schedule))
        optimizer.learning_rate = rate
        scenes = Scenes(part, work.number, work.step, objects, progress, photographs)
        logs = trainer.fit(scenes, verbose=0).history
        work.step += STEPS
        work.seconds += time.process_time() - began
        row = {k: f"{v[-1]:.4f}" for k, v in logs.items() if k in COLUMNS}
        row |= {"part": work.number, "step": work.step, "seconds": round(work.seconds)}
        work.save(segmenter, optimizer, {**row, "clicks": clicks, "learning_rate": f"{rate:.2e}"})
    return segmenter


def write_preset(segmenter, folder, training):
    """Writes the preset: weights in float16, and nothing of what it was computed in."""
    plain = build(dtype="float32")
    values = {v.path: array(v).astype("float16") for v in segmenter.backbone.weights}
    assign(plain, values)
    with whole_folder(folder, "config.json") as place:
        plain.save_to_preset(place)
        save_hdf5(place / WEIGHTS_FILE, values)
        for name in ("config.json", "task.json"):
            save_json(place / name, bare(json.loads((place / name).read_text())))
        about = {
            "description": "A small SAM trained on drawn scenes: to try things out, not for work.",
            "limits": LIMITS,
            "parameters": plain.count_params(),
            "image_encoder_parameters": plain.image_encoder.count_params(),
            "tensors": len(plain.backbone.weights),
            "license": "Apache-2.0",
            "files": sorted(path.name for path in place.iterdir()),
            "sources": [],
            "training": training,
        }
        save_json(place / "metadata.json", about)


def bare(config):
    """A configuration without names and dtypes, which are the business of whoever loads it."""
    if not isinstance(config, dict):
        return config
    left_out = ("name", "dtype", "trainable", "build_config", "compile_config")
    return {k: bare(v) for k, v in config.items() if k not in left_out}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="where the state of the training is kept")
    parser.add_argument("--preset", type=Path, default=ROOT / "presets" / "sam_tiny_demo")
    parser.add_argument("--start", help="a preset with which to begin the last part at once")
    parser.add_argument("--photographs", help="what tools/demo_photographs.py has prepared")
    parser.add_argument("--dtype", default="mixed_bfloat16", help="or float32, where it is faster")
    options = parser.parse_args()
    if options.photographs is None and any(part.photographed for part in PARTS):
        parser.error("--photographs is needed: what tools/demo_photographs.py has prepared")
    photographs = Photographs(options.photographs) if options.photographs else None
    keras.utils.set_random_seed(SEED)
    Path(options.folder).mkdir(parents=True, exist_ok=True)
    work = Work(options.folder)
    if options.start and not work.arrays:
        work.start_from(options.start)
    while work.number < len(PARTS):
        segmenter = train(PARTS[work.number], work, options.dtype, photographs)
        work.next_part()
        if work.number == len(PARTS):
            minutes = sum(part.minutes for part in PARTS)
            write_preset(segmenter, options.preset, {"minutes": minutes, "seed": SEED})


if __name__ == "__main__":
    main()
