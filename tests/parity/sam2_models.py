"""SAM 2's models with random weights, small and of odd sizes, and ours with the same weights."""

import functools

import keras_sam
from tests.parity.oracles import randomize
from tests.sam2_oracle import sam2_like
from tests.tiny import without_random_values

# Windows of 4 and then 2 fit the map, those of 6 and 3 do not; two heads of 6 channels, later
# four, eight and sixteen; one block is global. The tables of positions are not square.
ENCODER = {
    "hidden_size": 12,
    "num_blocks": [1, 2, 3, 2],
    "num_heads": 2,
    "global_attention_layer_indices": [4],
    "image_shape": (160, 160, 3),
    "window_sizes": [4, 2, 6, 3],
    "position_background_size": (5, 3),
    "num_output_channels": 32,
}
