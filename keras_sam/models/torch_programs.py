"""Models on torch, without Keras's calls in between: recorded once, then only computed."""

import operator

import keras


def compile_for_torch(model, variables, run):
    """`predict_on_batch` that repeats what torch computed for inputs of the same shapes.

    The decoder makes some 500 calls to torch for a click, and Keras's layers take as long to make
    them as torch takes to answer: 42 ms for one prompt, 24 ms without them. The first call for
    a shape runs the layers and records those calls; later ones only repeat them.

    Layers and activations of the user's own may look at numbers, of which a recording would know
    nothing, and hooks want to be called: models that have any run their layers every time.

    Args:
        model: a `keras.Model`.
        variables: list of its variables.
        run: function of the inputs as tensors, which calls the model; what is recorded.

    Returns:
        A function from arrays, or a dict of them, to the model's outputs, tensors.
    """
    import torch

    programs = {}
    layers = list(model._flatten_layers())
    has_own_code = any(map(_has_own_code, layers))

    def predict(inputs):
        inputs = keras.tree.map_structure(keras.ops.convert_to_tensor, inputs)
        with torch.no_grad():
            if has_own_code or _has_hooks(layers):
                outputs = model(inputs, training=False)
            else:
                values = [variable.value for variable in variables]
                key = tuple((x.shape, x.dtype) for x in keras.tree.flatten(inputs))
                if key in programs:
                    outputs = programs[key](values, inputs)
                else:
                    outputs, programs[key] = _record(run, values, inputs)
        return outputs

    return predict


def _has_own_code(layer):
    code = (layer, getattr(layer, "activation", None), getattr(layer, "function", None))  # Lambda's
    modules = (getattr(x, "__module__", None) or "" for x in code if x is not None)
    return any(module.partition(".")[0] not in ("keras", "keras_sam") for module in modules)


def _has_hooks(layers):
    return any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers)


def _record(run, values, inputs):
    """Calls `run`; gives its outputs, and a function that computes them for other numbers."""
    import torch
    from torch.utils import _pytree as pytree
    from torch.utils._python_dispatch import TorchDispatchMode

    graph = torch.fx.Graph()
    constants = torch.nn.Module()
    given = [*values, *keras.tree.flatten(inputs)]
    of_given = {id(x): graph.placeholder(f"given_{i}") for i, x in enumerate(given)}

    def node_of(x):
        if not isinstance(x, torch.Tensor):
            return x
        if id(x) in of_given:
            return of_given[id(x)]
        if not hasattr(x, "_node"):  # made from a number in the code
            name = f"constant_{len(list(constants.buffers()))}"
            constants.register_buffer(name, x)
            x._node = graph.get_attr(name)
        return x._node

    class Recorder(TorchDispatchMode):
        """Adds each operation to the graph. A tensor carries its node, so none is kept alive."""

        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            outputs = operation(*args, **(kwargs or {}))
            if not any(isinstance(x, torch.Tensor) for x in pytree.tree_leaves((outputs,))):
                if any(isinstance(x, torch.Tensor) for x in pytree.tree_leaves((args, kwargs))):
                    raise TypeError(f"A layer looks at a tensor's numbers, by {operation}.")
                return outputs  # what torch can do here, say
            args, kwargs = pytree.tree_map(node_of, (args, kwargs or {}))
            node = graph.call_function(operation, tuple(args), kwargs)
            if isinstance(outputs, torch.Tensor):
                outputs._node = node
            else:
                for i, output in enumerate(outputs):
                    output._node = graph.call_function(operator.getitem, (node, i))
            return outputs

    with Recorder():
        outputs = run(inputs)
    graph.output(pytree.tree_map(node_of, outputs))
    _compute_once(graph)
    compute = torch.fx.GraphModule(constants, graph)
    return outputs, lambda values, inputs: compute(*values, *keras.tree.flatten(inputs))


def _compute_once(graph):
    """Lets operations that are the same share their result: what the prompts of an image share."""
    from torch.utils import _pytree as pytree

    operations = [node for node in graph.nodes if node.op == "call_function"]
    if any(hasattr(x.target, "_schema") and x.target._schema.is_mutable for x in operations):
        return  # the same operation may find other numbers
    done = {}
    for node in operations:
        leaves, structure = pytree.tree_flatten((node.args, node.kwargs))
        key = (node.target, repr(structure), *((type(x), x) for x in leaves))
        first = done.setdefault(key, node)
        if first is not node:
            node.replace_all_uses_with(first)
            graph.erase_node(node)
