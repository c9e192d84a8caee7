"""Chooses pictures and thresholds at which our mask generator and Meta's can be compared.

    KERAS_BACKEND=torch python -m tools.choose_generator_settings

writes `tests/fixtures/generator_settings.json` for the present weights of `sam_tiny_demo`. It takes
the first picture with thresholds that no candidate is close to, at which enough records are kept,
every step drops some, and both generators give the same records. Run it again whenever the weights
change; it takes some minutes on one core. If a pixel is rounded differently on another backend,
search on for that comparison alone:

    KERAS_BACKEND=torch python -m tools.choose_generator_settings --only "own grids" --after 12
"""

import argparse
import json

import numpy as np

from keras_sam import boxes
from tests import generator_oracle as oracle

START = {"pred_iou_thresh": 0.45, "stability_score_thresh": 0.5}
OVERLAP = {"box_nms_thresh": 0.7, "crop_nms_thresh": 0.7}
# Where thresholds are looked for.
SCORES, STABILITIES = (0.45, 0.9), (0.5, 0.9)
OVERLAPS = sorted(np.arange(0.5, 0.9, 0.01).round(2).tolist(), key=lambda x: abs(x - 0.7))
TRIED = 3  # pairs of thresholds of a picture, and overlaps of a pair


def gaps(values, between):
    """The middles of the gaps, in a range of values, that are wide enough for a threshold."""
    low, high = between
    edges = np.sort(np.r_[low, values[(values > low) & (values < high)], high])
    wide = np.diff(edges) > 2.4 * oracle.MARGIN
    return [round(float(middle), 4) for middle in (edges[:-1] + edges[1:])[wide] / 2]


def score_thresholds(setting, seed):
    """Thresholds of scores and stability far from all candidates, those that keep most first."""
    _, watch = oracle.meta_records(setting, seed, {**START, **OVERLAP})
    scores, stabilities = np.concatenate(watch.scores), np.concatenate(watch.stabilities)
    judged = scores[scores > np.float32(START["pred_iou_thresh"])]
    found = []
    for score in gaps(scores, SCORES):
        accepted = stabilities[judged > score]
        for stability in gaps(accepted, STABILITIES):
            kept = int((accepted > stability).sum())
            if kept >= oracle.RECORDS:
                thresholds = {"pred_iou_thresh": score, "stability_score_thresh": stability}
                found.append((kept, thresholds))
    found.sort(key=lambda pair: -pair[0])
    return [thresholds for _, thresholds in found[:TRIED]]


def clear_overlaps(calls):
    """Overlaps that no box is near to, at which some are dropped and enough are kept."""
    found = []
    for overlap in OVERLAPS:
        kept = [boxes.nms(*call, overlap) for call in calls]
        pairs = list(zip(calls, kept, strict=True))
        margins = [oracle.suppression_margins(*call, k, overlap) for call, k in pairs]
        margin, order_margin = np.min(margins, axis=0)
        left, before = sum(map(len, kept)), sum(len(scores) for _, scores in calls)
        clear = margin > oracle.MARGIN and order_margin > oracle.ORDER_MARGIN
        if clear and oracle.RECORDS <= left < before:
            found.append(overlap)
    return found


def overlap_thresholds(setting, seed, thresholds):
    """Overlaps at which suppression in a crop, and across crops, can be compared."""
    crops = oracle.count_crops(setting)
    _, watch = oracle.meta_records(setting, seed, {**thresholds, **OVERLAP})
    found = []
    for overlap in clear_overlaps(watch.boxes[:crops])[:TRIED]:
        pair = {"box_nms_thresh": overlap, "crop_nms_thresh": overlap}
        if crops == 1:
            found.append(pair)
            continue
        _, watch = oracle.meta_records(setting, seed, {**thresholds, **pair})
        found += [{**pair, "crop_nms_thresh": x} for x in clear_overlaps(watch.boxes[crops:])[:1]]
    return found


def try_seed(segmenter, settings, seed, report):
    """Thresholds at which all of some settings can be compared on a picture, or None."""
    fault = "no thresholds without candidates near them"
    for scores in score_thresholds(settings[0], seed):
        for overlaps in overlap_thresholds(settings[0], seed, scores):
            thresholds = {**scores, **overlaps}
            try:
                for setting in settings:
                    records, watch = oracle.meta_records(setting, seed, thresholds)
                    oracle.assert_telling(setting, records, watch)
                    ours = oracle.our_records(segmenter, setting, seed, thresholds)
                    oracle.assert_same_records(ours, records)
            except AssertionError as error:
                fault = f"{setting}: {(str(error).splitlines() or ['other records'])[0]}"
                continue
            report(seed, f"{len(records)} records by {thresholds}, margin {watch.margin:.4f}")
            return thresholds
    report(seed, fault)
    return None


def main():
    names = list(dict.fromkeys(name for _, name, _ in oracle.SETTINGS.values()))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=names, help="choose for this one, keep the others")
    parser.add_argument("--after", type=int, default=-1, metavar="SEED", help="try later ones only")
    parser.add_argument("--seeds", type=int, default=100, help="how many to try")
    options = parser.parse_args()
    segmenter = oracle.our_model()
    chosen = oracle.chosen() if options.only else {}
    for name in [options.only] if options.only else names:
        settings = [s for s, (_, of, _) in oracle.SETTINGS.items() if of == name]
        for seed in range(options.after + 1, options.after + 1 + options.seeds):
            thresholds = try_seed(
                segmenter,
                settings,
                seed,
                lambda seed, text, name=name: print(f"{name}, seed {seed}: {text}", flush=True),
            )
            if thresholds is not None:
                chosen[name] = {"seed": seed, "thresholds": thresholds}
                oracle.CHOSEN.write_text(json.dumps(chosen, indent=4) + "\n")
                break
        else:
            raise SystemExit(f"{name}: none of {options.seeds} pictures will do")


if __name__ == "__main__":
    main()
