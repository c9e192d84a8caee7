"""Chooses the mask generator's settings that `sam_tiny_demo` recommends, and writes them into it.

    KERAS_BACKEND=torch python -m tools.recommend_demo_settings --pictures FOLDER
    KERAS_BACKEND=torch python -m tools.recommend_demo_settings --photos a.jpg b.jpg --dry-run

Every picture is segmented once with thresholds that keep nearly all candidates, then thresholds
are tried on these. What is drawn, and the coins, have known objects: of a mask it is known whether
it is one (IoU of at least 0.5), and of an object whether a mask was found. The settings with the
best mean F1 score of these pictures win, among those that keep ten masks or more in every
photograph: the ones in scikit-image that training never saw, and any that are given. `--pictures`
draws what the settings find there, to be looked at: no number says that they are objects. Prints
the best settings, and writes `generator_settings` into the preset's task.json. Run it again
whenever the weights change; it takes some minutes.
"""

import argparse
import functools
import itertools
import json
from pathlib import Path

import numpy as np
from PIL import Image

import keras_sam
from keras_sam import boxes, masks, visualization
from keras_sam.geometry import xywh_to_xyxy
from keras_sam.images import load_image
from keras_sam.presets.locate import TASK_FILE
from keras_sam.presets.write import save_json
from tests.coins_truth import coins
from tools.demo_compositions import composition
from tools.demo_scenes import scene

ROOT = Path(__file__).resolve().parent.parent
HELD_OUT = 30_000  # training's seeds start with 5
UNSEEN = ("chelsea", "astronaut", "coffee", "rocket")
SCORES = np.arange(0.4, 0.9, 0.05).round(2).tolist()
STABILITIES = np.arange(0.5, 0.96, 0.05).round(2).tolist()
OVERLAPS = (0.5, 0.6, 0.7)
ENOUGH = 10  # masks of a photograph
FOUND = 0.5  # IoU of a mask with an object that counts as found


class Candidates:
    """What the generator finds in a picture with loose thresholds and without suppression.

    Args:
        segmenter: a `SAMImageSegmenter`.
        points_per_side: int.
        image: uint8 array `(H0, W0, 3)`.
        objects: optional uint8 array `(M, H0, W0)`, what there is to find.
    """

    def __init__(self, segmenter, points_per_side, image, objects=None):
        generator = keras_sam.SAMAutomaticMaskGenerator(
            segmenter,
            points_per_side,
            pred_iou_thresh=SCORES[0],
            stability_score_thresh=STABILITIES[0],
            box_nms_thresh=1.0,
            output_mode="coco_rle",
        )
        self.image = image
        self.records = generator.generate(image)
        self._scores = np.array([r["predicted_iou"] for r in self.records])
        self._stabilities = np.array([r["stability_score"] for r in self.records])
        corners = [xywh_to_xyxy(r["bbox"]) for r in self.records]
        self._boxes = np.array(corners, "float64").reshape(-1, 4)
        self._ious = None
        if objects is not None:
            found = [r["segmentation"] for r in self.records]
            self._ious = masks.mask_iou(found, objects.astype(bool)).reshape(len(found), -1)

    def kept(self, pred_iou_thresh, stability_score_thresh, box_nms_thresh):
        """Indices of the records that these settings keep."""
        good = self._scores > pred_iou_thresh
        (good,) = np.nonzero(good & (self._stabilities >= stability_score_thresh))
        return good[boxes.nms(self._boxes[good], self._scores[good], box_nms_thresh)]

    def f1(self, kept):
        """The harmonic mean of the shares of masks that are objects, and of objects found."""
        matches = self._ious[kept] >= FOUND
        right, found = matches.any(axis=1).sum(), matches.any(axis=0).sum()
        return 2 * right * found / max(right * matches.shape[1] + found * len(kept), 1)


def choose(known, photographs):
    """All settings with their F1 score and fewest masks of a photograph, the best first."""
    rows = []
    for values in itertools.product(SCORES, STABILITIES, OVERLAPS):
        f1 = np.mean([candidates.f1(candidates.kept(*values)) for candidates in known])
        fewest = min(len(candidates.kept(*values)) for candidates in photographs)
        rows.append((fewest >= ENOUGH, float(f1), fewest, values))
    return sorted(rows, reverse=True)


def draw(folder, name, candidates, kept):
    folder.mkdir(parents=True, exist_ok=True)
    found = [candidates.records[index]["segmentation"] for index in kept]
    picture = np.asarray(visualization.overlay(candidates.image, found))
    Image.fromarray(picture).save(folder / f"{name}.png")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", type=Path, default=ROOT / "presets" / "sam_tiny_demo")
    parser.add_argument("--scenes", type=int, default=8, help="of each kind that is drawn")
    parser.add_argument("--photos", type=Path, nargs="*", default=(), help="further photographs")
    parser.add_argument("--points-per-side", type=int, default=16)
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="draw the masks here")
    parser.add_argument("--dry-run", action="store_true", help="leave the preset as it is")
    options = parser.parse_args()
    from skimage import data

    segmenter = keras_sam.SAMImageSegmenter.from_preset(options.preset, generator_settings=None)
    drawn = [make((HELD_OUT, i)) for i in range(options.scenes) for make in (scene, composition)]
    find = functools.partial(Candidates, segmenter, options.points_per_side)
    known = [find(*picture) for picture in [*drawn, coins()]]
    images = {name: getattr(data, name)() for name in UNSEEN}
    images |= {path.stem: load_image(path) for path in options.photos}
    photographs = {name: find(image) for name, image in images.items()}
    rows = choose(known, photographs.values())
    for enough, f1, fewest, values in rows[:10]:
        print(
            f"F1 {f1:.3f}, at least {fewest} masks of a photograph{'' if enough else '!'}: {values}"
        )
    enough, _, fewest, values = rows[0]
    if not enough:
        raise SystemExit(f"no settings keep {ENOUGH} masks in each photograph, at most {fewest}")
    for name, candidates in photographs.items():
        kept = candidates.kept(*values)
        print(f"{name}: {len(kept)} masks of {len(candidates.records)} candidates")
        if options.pictures:
            draw(options.pictures, name, candidates, kept)
    names = ("pred_iou_thresh", "stability_score_thresh", "box_nms_thresh")
    chosen = dict(zip(names, values, strict=True))
    settings = {"points_per_side": options.points_per_side, **chosen}
    print(settings)
    if not options.dry_run:
        task = json.loads((options.preset / TASK_FILE).read_text())
        task["config"]["generator_settings"] = settings
        save_json(options.preset / TASK_FILE, task)


if __name__ == "__main__":
    main()
