"""SAM 2 with random weights, by Meta's and transformers' code, and ours with the same weights.

All but the image encoder: three convolutions stand in for it, which give features of the three sizes.
"""

import functools

import keras
import numpy as np

import keras_sam
from keras_sam import backends
from keras_sam.converters.tables import to_ours, torch_rows
from keras_sam.converters.torch_tables import META_ROWS
from keras_sam.images import PIXEL_MEAN, PIXEL_STD
from keras_sam.presets.assign import assign
from tests.parity.oracles import randomize
from tests.sam2_oracle import import_sam2
from tests.tiny import without_random_values

CHANNELS, MASK_CHANNELS, HEADS, MLP, IOU_HIDDEN = 32, 12, 4, 72, 20
PATCH = 16

# What SAM's decoder does not have.
_ROWS = (
    *META_ROWS,
    *torch_rows(
        [
            ("mask_decoder/object_score_token", "embedding", "mask_decoder.obj_score_token"),
            (
                "mask_decoder/object_score_head/dense_{j}",
                "dense",
                "mask_decoder.pred_obj_score_head.layers.{j}",
            ),
        ]
    ),
)
_RENAMED = {
    "sam_mask_decoder.": "mask_decoder.",
    "sam_prompt_encoder.": "prompt_encoder.",
    ".mlp.layers.0.": ".mlp.lin1.",
    ".mlp.layers.1.": ".mlp.lin2.",
}


@functools.cache
def meta_parts(grid):
    """Meta's prompt encoder and mask decoder as one torch module, for an embedding `(Eh, Ew)`."""
    import_sam2()
    import torch
    from sam2.modeling.sam.mask_decoder import MaskDecoder
    from sam2.modeling.sam.prompt_encoder import PromptEncoder
    from sam2.modeling.sam.transformer import TwoWayTransformer

    parts = torch.nn.Module()
    parts.sam_prompt_encoder = PromptEncoder(
        CHANNELS, grid, (grid[0] * PATCH, grid[1] * PATCH), MASK_CHANNELS
    )
    parts.sam_mask_decoder = MaskDecoder(
        transformer_dim=CHANNELS,
        transformer=TwoWayTransformer(2, CHANNELS, HEADS, MLP),
        iou_head_hidden_dim=IOU_HIDDEN,
        use_high_res_features=True,
        iou_prediction_use_sigmoid=True,
        dynamic_multimask_via_stability=True,
        pred_obj_scores=True,
        pred_obj_scores_mlp=True,
        use_multimask_token_for_obj_ptr=True,
    )
    return randomize(parts, 7)


@functools.cache
def our_parts(grid):
    """Our prompt encoder and mask decoder with the weights of `meta_parts`."""
    encoder = keras_sam.SAMPromptEncoder(
        hidden_size=CHANNELS,
        image_embedding_size=grid,
        input_image_size=(grid[0] * PATCH, grid[1] * PATCH),
        mask_in_channels=MASK_CHANNELS,
        not_a_point_after_boxes=True,
    )
    decoder = keras_sam.SAM2MaskDecoder(
        hidden_size=CHANNELS,
        intermediate_dim=MLP,
        num_heads=HEADS,
        iou_head_hidden_dim=IOU_HIDDEN,
    )
    encoder.build()
    decoder.build()
    load(encoder.weights + decoder.weights, meta_parts(grid))
    return encoder, decoder


def load(variables, oracle):
    """Gives variables of ours the weights of Meta's modules."""
    tensors = {}
    for name, values in oracle.state_dict().items():
        for theirs, sams in _RENAMED.items():
            name = name.replace(theirs, sams)
        # The convolutions of the finer features are the image encoder's, here.
        if ".conv_s" not in name and not name.startswith("convs."):
            tensors[name] = values.detach().numpy()
    assign(variables, to_ours(tensors, _ROWS), backends.assign_value)


def features(grid, seed=0):
    """Random features of one image, as our image encoder names them."""
    rng = np.random.default_rng(seed)
    eh, ew = grid
    shapes = {
        "image_embeddings": (eh, ew, CHANNELS),
        "high_res_features_0": (4 * eh, 4 * ew, CHANNELS // 8),
        "high_res_features_1": (2 * eh, 2 * ew, CHANNELS // 4),
    }
    return {k: rng.standard_normal((1, *shape)).astype("float32") for k, shape in shapes.items()}


def metas_masks(oracle, image, points, labels, masks, multimask_output):
    """Masks `(P, K, Lh, Lw)`, IoUs and object scores by Meta's parts, as its predictor calls them.

    Box corners are points with labels 2 and 3; any of the prompts may be None.
    """
    import torch

    def tensor(x):
        return None if x is None else torch.from_numpy(np.ascontiguousarray(x))

    image = {name: tensor(x).permute(0, 3, 1, 2) for name, x in image.items()}
    prompts = None if points is None else (tensor(points), tensor(labels))
    masks = None if masks is None else tensor(masks)[:, None]
    with torch.no_grad():
        sparse, dense = oracle.sam_prompt_encoder(points=prompts, boxes=None, masks=masks)
        fine = [image["high_res_features_0"], image["high_res_features_1"]]
        masks, scores, _, object_score = oracle.sam_mask_decoder(
            image_embeddings=image["image_embeddings"],
            image_pe=oracle.sam_prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask_output,
            repeat_image=len(sparse) > 1,
            high_res_features=fine,
        )
    return masks, scores, object_score[:, 0]


# --- the whole model, with a stand-in for the image encoder ---


class _Encoder:
    """Three convolutions that halve what the one before them gives, as torch and as Keras have it."""

    SIZES = ((4, 3, CHANNELS // 8), (2, CHANNELS // 8, CHANNELS // 4), (2, CHANNELS // 4, CHANNELS))

    def torch(self):
        import torch

        convs = [torch.nn.Conv2d(i, o, k, stride=k) for k, i, o in self.SIZES]
        return randomize(torch.nn.ModuleList(convs), 11)

    @without_random_values()
    def keras(self, side):
        x = images = keras.Input((side, side, 3), name="images")
        x = keras.layers.Rescaling(1 / np.array(PIXEL_STD), -np.divide(PIXEL_MEAN, PIXEL_STD))(x)
        maps = []
        for i, (k, _, channels) in enumerate(self.SIZES):
            x = keras.layers.Conv2D(channels, k, strides=k, name=f"level_{i}")(x)
            maps.append(x)
        names = ("high_res_features_0", "high_res_features_1", "image_embeddings")
        encoder = keras.Model(images, dict(zip(names, maps, strict=True)))
        encoder.pixel_mean, encoder.pixel_std = PIXEL_MEAN, PIXEL_STD
        return encoder


@functools.cache
def meta_predictor(side=112):
    """Meta's `SAM2ImagePredictor` around `meta_parts` and the stand-in."""
    import torch

    model = meta_parts((side // PATCH, side // PATCH))
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    model.convs = _Encoder().torch()
    model.image_size, model.directly_add_no_mem_embed = side, False
    model.device = torch.device("cpu")

    def forward_image(pixels):
        maps = []
        for conv in model.convs:
            pixels = conv(pixels)
            maps.append(pixels)
        return maps

    def flatten(maps):
        return None, [x.flatten(2).permute(2, 0, 1) for x in maps], None, None

    model.forward_image, model._prepare_backbone_features = forward_image, flatten
    predictor = SAM2ImagePredictor(model)
    predictor._bb_feat_sizes = [(side // n, side // n) for n in (4, 8, 16)]
    return predictor


@functools.cache
def our_segmenter(side=112):
    """A `SAM2ImageSegmenter` with the weights of `meta_predictor(side)`."""
    model = meta_predictor(side).model
    grid = (side // PATCH, side // PATCH)
    encoder = _Encoder().keras(side)
    backbone = keras_sam.SAMBackbone(encoder, *our_parts(grid))
    for i, conv in enumerate(model.convs):
        kernel, bias = (x.detach().numpy() for x in (conv.weight, conv.bias))
        encoder.get_layer(f"level_{i}").set_weights([kernel.transpose(2, 3, 1, 0), bias])
    preprocessor = keras_sam.SAM2ImageSegmenterPreprocessor.for_backbone(backbone)
    return keras_sam.SAM2ImageSegmenter(backbone, preprocessor)
