"""SAM 2 with random weights, by Meta's code, and ours with the same: its parts, and the whole."""

import functools

import numpy as np

import keras_sam
from keras_sam import backends, converters
from keras_sam.presets.assign import assign
from tests.parity.oracles import randomize
from tests.parity.sam2_models import ENCODER
from tests.sam2_oracle import import_sam2, sam2_like
from tests.tiny import without_random_values

CHANNELS, MASK_CHANNELS, HEADS, MLP, IOU_HIDDEN = 32, 12, 4, 72, 20
PATCH = 16


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


def load(variables, oracle):
    """Gives variables of ours the weights of Meta's modules."""
    tensors = {name: values.detach().numpy() for name, values in oracle.state_dict().items()}
    arrays = converters.rename(tensors).arrays
    if not any(v.path.startswith("neck/") for v in variables):
        # The convolutions of the finer features are the image encoder's, here.
        arrays = {path: x for path, x in arrays.items() if not path.startswith("neck/")}
    assign(variables, arrays, backends.assign_value)


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


@functools.cache
def meta_predictor():
    """Meta's `SAM2ImagePredictor` of a small model that falls back to the best candidate."""
    import_sam2()
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    model = randomize(sam2_like(ENCODER, dynamic_multimask_via_stability=True), 7)
    return with_sizes(SAM2ImagePredictor(model))


def with_sizes(predictor):
    """Meta's predictor, told that its model's frame is not 1024 x 1024."""
    side = predictor.model.image_size
    predictor._bb_feat_sizes = [(side // n, side // n) for n in (4, 8, 16)]
    return predictor


@functools.cache
def our_segmenter(grid=None, **decoder):
    """A `SAM2ImageSegmenter` with the weights of `meta_predictor`.

    With a `grid`, of that embedding and with prompt encoder and mask decoder of `meta_parts`; its
    image encoder has no weights.
    """
    side = ENCODER["image_shape"][0]
    size = (side, side) if grid is None else (grid[0] * PATCH, grid[1] * PATCH)
    prompts = {}
    if grid is not None:
        prompts["mask_in_channels"] = MASK_CHANNELS
        decoder |= {"intermediate_dim": MLP, "num_heads": HEADS, "iou_head_hidden_dim": IOU_HIDDEN}
    with without_random_values():
        encoder = keras_sam.HieraBackbone(**{**ENCODER, "image_shape": (*size, 3)})
        prompt_encoder = keras_sam.SAMPromptEncoder(
            hidden_size=CHANNELS,
            image_embedding_size=encoder.embedding_size,
            input_image_size=size,
            not_a_point_after_boxes=True,
            **prompts,
        )
        mask_decoder = keras_sam.SAM2MaskDecoder(hidden_size=CHANNELS, **decoder)
        backbone = keras_sam.SAMBackbone(encoder, prompt_encoder, mask_decoder)
    preprocessor = keras_sam.SAM2ImageSegmenterPreprocessor.for_backbone(backbone)
    segmenter = keras_sam.SAM2ImageSegmenter(backbone, preprocessor)
    if grid is None:
        load(segmenter.weights, meta_predictor().model)
    else:
        load(prompt_encoder.weights + mask_decoder.weights, meta_parts(grid))
    return segmenter
