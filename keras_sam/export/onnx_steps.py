"""What stands before and after a traced graph, in ONNX's own terms: steps whose sizes depend on the
image, which PyTorch cannot trace.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def with_image_input(encoder: Any, plan: dict, opset: int, dtype: str = "uint8") -> Any:
    """An encoder that takes the image itself, `(H0, W0, channels)`, pixel values 0..255.

    It is scaled, rounded, normalised and padded as `SAMImageConverter` does with uint8 images.
    `plan` has `frame`, `stretch`, `mean` and `std`. Both sides are scaled by a product with a
    matrix of weights: `Resize` with antialiasing is off by up to 16 grey levels in ONNX Runtime
    where the sides' scales differ, and OpenVINO passes over the antialiasing.
    """
    height, width = plan["frame"]
    mean, std = (_floats(np.asarray(plan[name]).ravel()) for name in ("mean", "std"))
    channels = len(plan["mean"])
    kind = {"uint8": "uint8", "float32": "float"}[dtype]
    pre = _parse(
        f"""
        scale_to_frame ({kind}[H0, W0, {channels}] image)
        => (float[1, {channels}, {height}, {width}] pixels)
        <int64[1] batch_axis = {{0}},
         float low = {{0.0}}, float high = {{255.0}},
         float[{channels}] mean = {{{mean}}}, float[{channels}] std = {{{std}}},
         int64[3] column = {{{channels}, 1, 1}}, int64[2] frame = {{{height}, {width}}},
         int64[6] nothing = {{0, 0, 0, 0, 0, 0}}>
        {{
            values = Cast <to = 1> (image)
            planes = Transpose <perm = [2, 0, 1]> (values)
            planes_of_one = Unsqueeze (planes, batch_axis)
            original_size = Shape <start = 0, end = 2> (image)
            {_scaled_size("original_size", plan)}
            {_bilinear_weights("rows", 0)}
            {_bilinear_weights("columns", 1)}
            columns_turned = Transpose <perm = [1, 0]> (columns_weights)
            of_rows = MatMul (rows_weights, planes_of_one)
            resized = MatMul (of_rows, columns_turned)
            rounded = Round (resized)
            clipped = Clip (rounded, low, high)
            mean_column = Reshape (mean, column)
            std_column = Reshape (std, column)
            centred = Sub (clipped, mean_column)
            normalised = Div (centred, std_column)
            missing = Sub (frame, scaled_size)
            padding = Concat <axis = 0> (nothing, missing)
            pixels = Pad (normalised, padding)
        }}
        """,
        opset,
    )
    return _join(pre, encoder, ["pixels"])


def as_metas_decoder(
    decoder: Any,
    plan: dict,
    opset: int,
    *,
    mask_threshold: float,
    return_single_mask: bool = False,
    use_stability_score: bool = False,
    return_extra_metrics: bool = False,
) -> Any:
    """Meta's exported decoder: a prompt decoder of all masks, with one prompt and Meta's names.

    Labels are floats, there is always a `mask_input`, which counts where `has_mask_input` is above
    0, and masks have the image's size. The options are those of Meta's exporter.
    """
    shape = decoder.graph.output[0].type.tensor_type.shape.dim
    masks, lh, lw = (n.dim_value for n in shape[2:])
    _rename(decoder, {"masks": "low_res_of_prompts", "iou_pred": "iou_of_prompts"})
    options = (return_single_mask, use_stability_score, return_extra_metrics)
    post = _masks_of_the_image(plan, opset, (masks, lh, lw), mask_threshold, *options)
    joined = _join(decoder, post, ["low_res_of_prompts", "iou_of_prompts"])
    pre = _parse(
        f"""
        metas_prompt (float[1, num_points, 2] point_coords, float[1, num_points] point_labels,
            float[1, 1, {lh}, {lw}] mask_input, float[1] has_mask_input)
        => (float[1, 1, num_points, 2] points, int32[1, 1, num_points] labels,
            float[1, 1, {lh}, {lw}] mask_prompts, float[1, 1] mask_given)
        {{
            axis = Constant <value_ints = [1]> ()
            points = Unsqueeze (point_coords, axis)
            whole = Cast <to = 6> (point_labels)
            labels = Unsqueeze (whole, axis)
            mask_prompts = Identity (mask_input)
            mask_given = Unsqueeze (has_mask_input, axis)
        }}
        """,
        opset,
    )
    joined = _join(pre, joined, [x.name for x in pre.graph.output])
    del joined.graph.value_info[:]  # of any number of prompts
    given = {x.name: x for x in joined.graph.input}
    own = ("point_coords", "point_labels", "mask_input", "has_mask_input", "orig_im_size")
    features = [name for name in given if name not in own]
    del joined.graph.input[:]
    joined.graph.input.extend(given[name] for name in (*features, *own))
    return joined


def _masks_of_the_image(
    plan,
    opset,
    low_res_shape,
    mask_threshold,
    return_single_mask,
    use_stability_score,
    return_extra_metrics,
):
    """Meta's choice of masks, and masks in the image's size."""
    masks, lh, lw = low_res_shape
    kept = 1 if return_single_mask else masks
    metrics = f"float[1, {kept}] stability_scores, float[1, {kept}] areas,"
    return _parse(
        f"""
        masks_of_the_image (float[1, 1, {masks}, {lh}, {lw}] low_res_of_prompts,
            float[1, 1, {masks}] iou_of_prompts,
            float[1, num_points, 2] point_coords, float[2] orig_im_size)
        => (float[1, {kept}, height, width] masks, float[1, {kept}] iou_predictions,
            {metrics if return_extra_metrics else ""}
            float[1, {kept}, {lh}, {lw}] low_res_masks)
        {{
            prompt_axis = Constant <value_ints = [1]> ()
            low_res = Squeeze (low_res_of_prompts, prompt_axis)
            iou_of_all = Squeeze (iou_of_prompts, prompt_axis)
            {_all_scores(use_stability_score, mask_threshold)}
            {_choice(masks) if return_single_mask else _NO_CHOICE}
            {_enlarged(plan, kept)}
            {_metrics(mask_threshold) if return_extra_metrics else ""}
        }}
        """,
        opset,
    )


def _all_scores(use_stability_score, mask_threshold):
    """Steps to the scores `(1, K)` of all masks."""
    if use_stability_score:
        return _stability("low_res", "all_scores", mask_threshold)
    return "all_scores = Identity (iou_of_all)"


_NO_CHOICE = """
    iou_predictions = Identity (all_scores)
    low_res_masks = Identity (low_res)
"""


def _choice(masks):
    """Steps to one mask: mask 0 for more than two points, a box counting as two, else the best of
    the others.
    """
    return f"""
        count = Shape <start = 1, end = 2> (point_coords)
        count_of_points = Cast <to = 1> (count)
        half = Constant <value_floats = [2.5]> ()
        beyond = Sub (count_of_points, half)
        weights = Constant <value_floats = [{_floats([1000.0, *[0.0] * (masks - 1)])}]> ()
        bonus = Mul (beyond, weights)
        weighted = Add (all_scores, bonus)
        best = ArgMax <axis = 1, keepdims = 0> (weighted)
        iou_predictions = Gather <axis = 1> (all_scores, best)
        low_res_masks = Gather <axis = 1> (low_res, best)
    """


def _enlarged(plan, kept):
    """Steps from `low_res_masks` to `masks`: to the frame, without its padding, to the image."""
    height, width = plan["frame"]
    resize = 'Resize <mode = "linear", coordinate_transformation_mode = "half_pixel">'
    in_frame = f"""
        frame_shape = Constant <value_ints = [1, {kept}, {height}, {width}]> ()
        in_frame = {resize} (low_res_masks, , , frame_shape)
        origin = Constant <value_ints = [0, 0]> ()
        sides = Constant <value_ints = [2, 3]> ()
        {_scaled_size("original_size", plan)}
        cropped = Slice (in_frame, origin, scaled_size, sides)
    """
    return f"""
        original_size = Cast <to = 7> (orig_im_size)
        {"cropped = Identity (low_res_masks)" if plan["stretch"] else in_frame}
        batch = Constant <value_ints = [1, {kept}]> ()
        image_shape = Concat <axis = 0> (batch, original_size)
        masks = {resize} (cropped, , , image_shape)
    """


def _metrics(mask_threshold):
    """Steps to the stability and the area of each mask in the image's size."""
    return f"""
        {_stability("masks", "stability_scores", mask_threshold)}
        threshold_of_area = Constant <value_floats = [{float(mask_threshold)}]> ()
        inside = Greater (masks, threshold_of_area)
        inside_float = Cast <to = 1> (inside)
        sides_of_area = Constant <value_ints = [2, 3]> ()
        areas = ReduceSum <keepdims = 0> (inside_float, sides_of_area)
    """


def _scaled_size(original, plan):
    """Steps from an int64 `(2,)` size to `scaled_size`, the image's size within the frame."""
    height, width = plan["frame"]
    if plan["stretch"]:
        return f"scaled_size = Constant <value_ints = [{height}, {width}]> ()"
    return f"""
        size_float = Cast <to = 1> ({original})
        frame_float = Constant <value_floats = [{float(height)}, {float(width)}]> ()
        scales = Div (frame_float, size_float)
        scale = ReduceMin <keepdims = 1> (scales)
        exact = Mul (size_float, scale)
        a_half = Constant <value_floats = [0.5]> ()
        raised = Add (exact, a_half)
        whole = Floor (raised)
        scaled_int = Cast <to = 7> (whole)
        least = Constant <value_ints = [1, 1]> ()
        scaled_size = Max (scaled_int, least)
    """


def _bilinear_weights(side, axis):
    """Steps from `original_size` and `scaled_size` to a side's weights, `(scaled, original)`.

    A triangle around the centre of each new pixel, as wide as the pixel in the image or at least
    as one of the image's; weights of a new pixel add up to 1.
    """
    return f"""
        {side}_axis = Constant <value_ints = [{axis}]> ()
        {side}_end = Constant <value_ints = [{axis + 1}]> ()
        {side}_zero = Constant <value_int = 0> ()
        {side}_step = Constant <value_int = 1> ()
        {side}_half = Constant <value_float = 0.5> ()
        {side}_one = Constant <value_float = 1.0> ()
        {side}_last = Constant <value_ints = [1]> ()
        {side}_from = Slice (original_size, {side}_axis, {side}_end)
        {side}_to = Slice (scaled_size, {side}_axis, {side}_end)
        {side}_old = Squeeze ({side}_from)
        {side}_new = Squeeze ({side}_to)
        {side}_old_float = Cast <to = 1> ({side}_old)
        {side}_new_float = Cast <to = 1> ({side}_new)
        {side}_width = Div ({side}_old_float, {side}_new_float)
        {side}_reach = Max ({side}_width, {side}_one)
        {side}_new_pixels = Range ({side}_zero, {side}_new, {side}_step)
        {side}_new_places = Cast <to = 1> ({side}_new_pixels)
        {side}_middles = Add ({side}_new_places, {side}_half)
        {side}_middles_there = Mul ({side}_middles, {side}_width)
        {side}_centres = Sub ({side}_middles_there, {side}_half)
        {side}_column = Unsqueeze ({side}_centres, {side}_last)
        {side}_old_pixels = Range ({side}_zero, {side}_old, {side}_step)
        {side}_old_places = Cast <to = 1> ({side}_old_pixels)
        {side}_apart = Sub ({side}_old_places, {side}_column)
        {side}_distance = Abs ({side}_apart)
        {side}_share = Div ({side}_distance, {side}_reach)
        {side}_rest = Sub ({side}_one, {side}_share)
        {side}_triangles = Relu ({side}_rest)
        {side}_sums = ReduceSum <keepdims = 1> ({side}_triangles, {side}_last)
        {side}_weights = Div ({side}_triangles, {side}_sums)
    """


def _stability(masks, name, threshold):
    """Steps from masks `(1, K, h, w)` to their stability scores `(1, K)`, with an offset of 1."""
    return f"""
        high_{name} = Constant <value_floats = [{float(threshold + 1)}]> ()
        low_{name} = Constant <value_floats = [{float(threshold - 1)}]> ()
        above_{name} = Greater ({masks}, high_{name})
        about_{name} = Greater ({masks}, low_{name})
        above_float_{name} = Cast <to = 1> (above_{name})
        about_float_{name} = Cast <to = 1> (about_{name})
        sides_{name} = Constant <value_ints = [2, 3]> ()
        inner_{name} = ReduceSum <keepdims = 0> (above_float_{name}, sides_{name})
        outer_{name} = ReduceSum <keepdims = 0> (about_float_{name}, sides_{name})
        {name} = Div (inner_{name}, outer_{name})
    """


def _floats(values):
    return ", ".join(repr(float(v)) for v in values)


def _parse(text, opset):
    import onnx.parser

    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}]>\n{text}')


def _rename(model, names):
    for node in model.graph.node:
        node.output[:] = [names.get(x, x) for x in node.output]
        node.input[:] = [names.get(x, x) for x in node.input]
    for output in model.graph.output:
        output.name = names.get(output.name, output.name)


def _join(first, second, names):
    """Two models in a row: outputs of the first are inputs of the second, by their `names`.

    Another input that both have under one name stays one.
    """
    import onnx.compose

    shared = {x.name for x in first.graph.input} & {x.name for x in second.graph.input} - {*names}
    _rename_inputs(second, shared)
    first.ir_version = second.ir_version = max(first.ir_version, second.ir_version)
    # Names inside may be the same in both, those of inputs and outputs stay.
    _prefix_inner(second, "after_")
    # `merge_models` would also check the result, which no model of 2 GB passes; `save` checks it.
    outputs, pairs = [x.name for x in second.graph.output], [(name, name) for name in names]
    graph = onnx.compose.merge_graphs(first.graph, second.graph, pairs, outputs=outputs)
    joined = onnx.helper.make_model(
        graph,
        opset_imports=first.opset_import,
        ir_version=first.ir_version,
        functions=[*first.functions, *second.functions],
    )
    for name in shared:
        _merge_input(joined, f"{name}_again", name)
    return joined


def _rename_inputs(model, names):
    for node in model.graph.node:
        node.input[:] = [f"{x}_again" if x in names else x for x in node.input]
    for given in model.graph.input:
        if given.name in names:
            given.name = f"{given.name}_again"


def _prefix_inner(model, prefix):
    outer = {x.name for x in (*model.graph.input, *model.graph.output)}

    def renamed(name):
        return name if not name or name in outer else prefix + name

    for node in model.graph.node:
        node.name = prefix + node.name if node.name else ""
        node.input[:] = [renamed(x) for x in node.input]
        node.output[:] = [renamed(x) for x in node.output]
    for tensor in model.graph.initializer:
        tensor.name = renamed(tensor.name)
    for value in model.graph.value_info:
        value.name = renamed(value.name)


def _merge_input(model, name, into):
    for node in model.graph.node:
        node.input[:] = [into if x == name else x for x in node.input]
    kept = [x for x in model.graph.input if x.name != name]
    del model.graph.input[:]
    model.graph.input.extend(kept)
