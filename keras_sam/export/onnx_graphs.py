"""ONNX files: what torch makes of our graphs, and the steps before and after in ONNX's own terms.

These steps have sizes that depend on the image, which PyTorch cannot trace.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from keras_sam.export.graphs import Graph

_LARGEST = 4096  # of an axis of any length; PyTorch wants a bound
LARGEST_FILE = 2**31 - 2**24  # bytes of weights; a protobuf cannot have 2 GB


def trace(graph: Graph, opset: int) -> Any:
    """The ONNX model of a graph, on the torch backend."""
    import torch

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList(graph.layers)

        def forward(self, *arrays):
            outputs = graph(*arrays)
            return tuple(outputs[name] for name in graph.outputs)

    # Not 1, which PyTorch would take for a constant.
    lengths = {"prompts": 3, "points": 5}
    examples = tuple(torch.from_numpy(a.example(**lengths)) for a in graph.arguments)
    axes = {name: torch.export.Dim(name, max=_LARGEST) for name in lengths}
    dynamic = tuple(
        {i: axes[n] for i, n in enumerate(a.shape) if isinstance(n, str)} or None
        for a in graph.arguments
    )
    with warnings.catch_warnings(), torch.no_grad(), _quiet("torch.onnx"):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Module().eval(),
            examples,
            dynamo=True,
            opset_version=opset,
            input_names=[a.name for a in graph.arguments],
            output_names=list(graph.outputs),
            dynamic_shapes=(dynamic,),
            verbose=False,
        )
    model = program.model_proto
    for node in model.graph.node:  # where in our code it came from, with paths of this machine
        del node.metadata_props[:]
    del model.metadata_props[:]
    return model


def save(model: Any, path: Path) -> list[str]:
    """Writes a model, checks the file, and returns the names of the files that were written.

    The weights of the largest models, as ViT-H's in float32, lie beside it in `<name>.data`.
    """
    import onnx

    beside = f"{path.name}.data"
    large = sum(len(x.raw_data) for x in model.graph.initializer) > LARGEST_FILE
    onnx.save(model, os.fspath(path), save_as_external_data=large, location=beside)
    onnx.checker.check_model(os.fspath(path))  # by its path, which models of any size have
    return [path.name, beside] if large else [path.name]


@contextlib.contextmanager
def _quiet(name):
    """Without a logger's warnings, such as those on packages that our graphs do not use."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


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
    return _join(pre, encoder, [("pixels", "pixels")])


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
    outputs = ("low_res_of_prompts", "iou_of_prompts")
    joined = _join(decoder, post, [(name, name) for name in outputs])
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
    prompts = [x.name for x in pre.graph.output]
    joined = _join(pre, joined, [(name, name) for name in prompts])
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
    height, width = plan["frame"]
    stable = _stability("low_res", "stable", mask_threshold)
    scores = f"{stable} all_scores = Identity (stable)" if use_stability_score else ""
    scores = scores or "all_scores = Identity (iou_of_all)"
    choice = "scores = Identity (all_scores) low_res_masks = Identity (low_res)"
    kept = masks
    if return_single_mask:
        kept = 1
        weights = _floats([1000.0, *[0.0] * (masks - 1)])
        # Mask 0 for more than two points, a box counting as two, else the best of the others.
        choice = f"""
            count = Shape <start = 1, end = 2> (point_coords)
            count_of_points = Cast <to = 1> (count)
            half = Constant <value_floats = [2.5]> ()
            beyond = Sub (count_of_points, half)
            weights = Constant <value_floats = [{weights}]> ()
            bonus = Mul (beyond, weights)
            weighted = Add (all_scores, bonus)
            best = ArgMax <axis = 1, keepdims = 0> (weighted)
            low_res_masks = Gather <axis = 1> (low_res, best)
            scores = Gather <axis = 1> (all_scores, best)
        """
    extra_outputs, extra = "", ""
    if return_extra_metrics:
        extra_outputs = f"float[1, {kept}] stability_scores, float[1, {kept}] areas,"
        extra = f"""
            {_stability("masks", "stability_scores", mask_threshold)}
            threshold_of_area = Constant <value_floats = [{float(mask_threshold)}]> ()
            inside = Greater (masks, threshold_of_area)
            inside_float = Cast <to = 1> (inside)
            sides_of_area = Constant <value_ints = [2, 3]> ()
            areas = ReduceSum <keepdims = 0> (inside_float, sides_of_area)
        """
    resize = 'Resize <mode = "linear", coordinate_transformation_mode = "half_pixel">'
    to_frame = f"""
        frame_shape = Constant <value_ints = [1, {kept}, {height}, {width}]> ()
        in_frame = {resize} (low_res_masks, , , frame_shape)
        origin = Constant <value_ints = [0, 0]> ()
        sides = Constant <value_ints = [2, 3]> ()
        cropped = Slice (in_frame, origin, scaled_size, sides)
    """
    if plan["stretch"]:
        to_frame = "cropped = Identity (low_res_masks)"
    return _parse(
        f"""
        masks_of_the_image (float[1, 1, {masks}, {lh}, {lw}] low_res_of_prompts,
            float[1, 1, {masks}] iou_of_prompts,
            float[1, num_points, 2] point_coords, float[2] orig_im_size)
        => (float[1, {kept}, height, width] masks, float[1, {kept}] iou_predictions,
            {extra_outputs} float[1, {kept}, {lh}, {lw}] low_res_masks)
        {{
            prompt_axis = Constant <value_ints = [1]> ()
            low_res = Squeeze (low_res_of_prompts, prompt_axis)
            iou_of_all = Squeeze (iou_of_prompts, prompt_axis)
            {scores}
            {choice}
            iou_predictions = Identity (scores)
            original_size = Cast <to = 7> (orig_im_size)
            {_scaled_size("original_size", plan)}
            {to_frame}
            batch = Constant <value_ints = [1, {kept}]> ()
            image_shape = Concat <axis = 0> (batch, original_size)
            masks = {resize} (cropped, , , image_shape)
            {extra}
        }}
        """,
        opset,
    )


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


def _join(first, second, io_map):
    """Two models in a row. An input that both have under one name stays one."""
    import onnx.compose

    taken = {name for _, name in io_map}
    shared = {x.name for x in first.graph.input} & {x.name for x in second.graph.input} - taken
    _rename(second, {}) if not shared else _rename_inputs(second, shared)
    first.ir_version = second.ir_version = max(first.ir_version, second.ir_version)
    # Names inside may be the same in both, those of inputs and outputs stay.
    _prefix_inner(second, "after_" if io_map else "")
    # `merge_models` would also check the result, which no model of 2 GB passes; `save` checks it.
    outputs = [x.name for x in second.graph.output]
    graph = onnx.compose.merge_graphs(first.graph, second.graph, io_map, outputs=outputs)
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


def with_stored_weights(model: Any, precision: str) -> Any:
    """The same model with its large weights stored in fewer bits; it computes in float32.

    float16 keeps 11 bits of each number. int8 keeps 8 bits of each channel's range, for the weights
    of products and convolutions, one channel per output.
    """
    import onnx
    from onnx import helper, numpy_helper

    if precision == "float32":
        return model
    graph = model.graph
    axes = _output_axes(graph)
    nodes, kept = [], []
    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.size < _SMALL:
            kept.append(tensor)
            continue
        name = tensor.name
        if precision == "float16":
            kept.append(numpy_helper.from_array(values.astype("float16"), f"{name}_float16"))
            nodes.append(
                helper.make_node("Cast", [f"{name}_float16"], [name], to=onnx.TensorProto.FLOAT)
            )
        elif name in axes:
            axis = axes[name]
            others = tuple(i for i in range(values.ndim) if i != axis)
            scale = np.maximum(np.abs(values).max(others) / 127, 1e-12).astype("float32")
            column = [-1 if i == axis else 1 for i in range(values.ndim)]
            whole = np.clip(np.rint(values / scale.reshape(column)), -127, 127).astype("int8")
            kept.append(numpy_helper.from_array(whole, f"{name}_int8"))
            kept.append(numpy_helper.from_array(scale, f"{name}_scale"))
            nodes.append(
                helper.make_node(
                    "DequantizeLinear", [f"{name}_int8", f"{name}_scale"], [name], axis=axis
                )
            )
        else:
            kept.append(tensor)
    del graph.initializer[:]
    graph.initializer.extend(kept)
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])
    return model


_SMALL = 1024  # values, below which a tensor stays as it is


def _output_axes(graph):
    """The axis of the output channels of each weight that a product or a convolution reads."""
    axes = {}
    for node in graph.node:
        if node.op_type not in ("MatMul", "Gemm", "Conv", "ConvTranspose") or len(node.input) < 2:
            continue
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        axes[node.input[1]] = {
            "MatMul": -1,
            "Gemm": 0 if transposed else 1,
            "Conv": 0,
            "ConvTranspose": 1,
        }[node.op_type]
    ranks = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    return {name: axis % ranks[name] for name, axis in axes.items() if name in ranks}
