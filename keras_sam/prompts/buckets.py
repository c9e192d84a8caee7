"""Few shapes: prompt sets in chunks, padded to lengths for which a program is compiled once.

Numpy only.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from keras_sam.prompts.labels import PADDING
from keras_sam.prompts.nested import next_power_of_two
from keras_sam.prompts.reading import Prompts


def chunks(prompts: Prompts, size: int, pad_sets: bool) -> Iterator[tuple[slice, Prompts]]:
    """Where chunks of at most `size` prompt sets are, and the chunks, padded to few shapes.

    Tokens are always padded, prompt sets only with `pad_sets`.
    """
    for start, stop, padded in split_into_buckets(prompts.num_sets, size, pad_sets):
        sets = slice(start, stop)
        chunk = dataclasses.replace(
            prompts,
            points=prompts.points[:, sets],
            labels=prompts.labels[:, sets],
            masks=prompts.masks[:, sets],
            mask_given=prompts.mask_given[:, sets],
        )
        yield sets, pad_prompts(chunk, padded)


def pad_prompts(prompts: Prompts, prompt_sets: int | None = None) -> Prompts:
    """Pads tokens to a power of two, at least 2, and prompt sets to `prompt_sets`, or likewise.

    So few shapes are ever compiled. Padding tokens are masked in every attention, and padded
    prompt sets are cut off again, so the masks are those of the prompts alone.
    """
    sets, tokens = prompts.labels.shape[1:]
    more_sets = (next_power_of_two(sets) if prompt_sets is None else prompt_sets) - sets
    more_tokens = max(2, next_power_of_two(tokens)) - tokens
    more_masks = more_sets if prompts.mask_given.shape[1] else 0

    def pad(x, *widths, value=0):
        widths = [(0, 0), *((0, n) for n in widths), *([(0, 0)] * (x.ndim - 1 - len(widths)))]
        return np.pad(x, widths, constant_values=value)

    return dataclasses.replace(
        prompts,
        points=pad(prompts.points, more_sets, more_tokens),
        labels=pad(prompts.labels, more_sets, more_tokens, value=PADDING),
        masks=pad(prompts.masks, more_masks),
        mask_given=pad(prompts.mask_given, more_masks),
    )


def split_into_buckets(total: int, size: int, pad_sets: bool) -> Iterator[tuple[int, int, int]]:
    """Where to cut prompt sets so that at most one is padding: start, stop and padded length.

    A chunk of 8 takes 5 as 4 and 1: three padded ones would cost more than a second call.
    """

    def bucket(count):
        return min(next_power_of_two(count), size) if pad_sets else count

    start = 0
    while start < total:
        count = min(size, total - start)
        if bucket(count) - count > 1:
            count = next_power_of_two(count) // 2
        yield start, start + count, bucket(count)
        start += count
