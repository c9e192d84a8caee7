"""Models on torch, without Keras's calls in between: recorded once, then only computed."""

import operator

import keras


def compile_for_torch(model, variables, in_turn=()):
    """`predict_on_batch` that repeats what torch computed for inputs of the same shapes.

    The decoder makes some 500 calls to torch for a click, and Keras's layers take as long to make
    them as torch takes to answer: 42 ms for one prompt, 24 ms without them. The first call for
    a shape runs the layers and records those calls; later ones only repeat them.

    Layers and activations of the user's own may look at numbers, of which a recording would know
    nothing, and hooks want to be called: models that have any run their layers every time.

    Args:
        model: a `keras.Model`.
        variables: list of its variables.
        in_turn: names of inputs `(B, P, ...)` of which the model gets one prompt after the other.
            What does not depend on them is computed once a call, and the outputs, a dict, are
            put together. From two on, any number of prompts is then the same recording.

    Returns:
        A function from arrays, or a dict of them, to the model's outputs, tensors.
    """
    import torch

    recordings = {}
    layers = list(model._flatten_layers())
    has_own_code = any(map(_has_own_code, layers))

    def predict(inputs):
        inputs = _as_tensors(inputs)
        with torch.no_grad():
            if has_own_code or _has_hooks(layers):
                return model(inputs, training=False)
            values = [variable.value for variable in variables]
            if not in_turn or inputs[in_turn[0]].shape[1] == 1:
                return run([], inputs, [[*values, *_flatten(inputs)]])[0]
            names = [name for name in in_turn if name in inputs]
            common = {name: x for name, x in inputs.items() if name not in names}
            turns = [*zip(*(inputs[name].split(1, dim=1) for name in names))]
            first = {**common, **dict(zip(names, turns[0]))}
            outputs = run([*values, *_flatten(common)], first, turns)
            return {name: torch.cat([some[name] for some in outputs], 1) for name in outputs[0]}

    def run(given, inputs, turns):
        """The outputs for each of `turns`, tensors that differ; the first one's are in `inputs`."""
        key = (len(given), *((x.shape, x.dtype) for x in (*given, *turns[0])))
        outputs = []
        if key not in recordings:
            output, recordings[key] = _record(model, inputs, given, turns[0])
            outputs.append(output)
        if len(outputs) < len(turns):
            once, each = recordings[key]
            shared = once(*given)
            outputs += [each(*shared, *turn) for turn in turns[len(outputs) :]]
        return outputs

    return predict


# In place of `keras.tree`, whose functions of torch's refer to themselves: 1 KB a prompt, until
# Python's collector comes by.
def _as_tensors(inputs):
    if isinstance(inputs, dict):
        return {name: _as_tensors(x) for name, x in inputs.items()}
    return keras.ops.convert_to_tensor(inputs)


def _flatten(inputs):
    if isinstance(inputs, dict):
        return [x for name in sorted(inputs) for x in _flatten(inputs[name])]
    return [inputs]


def _has_own_code(layer):
    code = (layer, getattr(layer, "activation", None), getattr(layer, "function", None))  # Lambda's
    modules = (getattr(x, "__module__", None) or "" for x in code if x is not None)
    return any(module.partition(".")[0] not in ("keras", "keras_sam") for module in modules)


def _has_hooks(layers):
    return any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers)


def _record(model, inputs, given, changing):
    """Calls the model with `inputs`, which are made of some of `given` and of `changing`.

    Gives its outputs, and two functions: of `given` to a list of tensors, and of these and
    `changing` to the outputs for other numbers.
    """
    import torch
    from torch.utils import _pytree as pytree
    from torch.utils._python_dispatch import TorchDispatchMode

    graph = torch.fx.Graph()
    constants = torch.nn.Module()
    of_given = {id(x): graph.placeholder(f"given_{i}") for i, x in enumerate([*given, *changing])}

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
        outputs = model(inputs, training=False)
    graph.output(pytree.tree_map(node_of, outputs))
    graph.eliminate_dead_code()  # what layers compute and nobody uses
    parts = _split(graph, [of_given[id(x)] for x in changing])
    return outputs, tuple(torch.fx.GraphModule(constants, part) for part in parts)


def _split(graph, changing):
    """The part of a graph that does not depend on the placeholders `changing`, and the rest.

    The first returns what the second takes before `changing`.
    """
    import torch

    depends = dict.fromkeys(changing, True)
    # Where an operation changes a tensor, all are left in their order.
    in_order = any(_changes_tensors(node.target) for node in graph.nodes)
    for node in graph.nodes:
        if node.op == "call_function":
            depends[node] = in_order or any(depends.get(x) for x in node.all_input_nodes)
    depends[graph.output_node()] = True
    shared = [x for x in graph.nodes if not depends.get(x) and any(map(depends.get, x.users))]

    once, each = torch.fx.Graph(), torch.fx.Graph()
    of_once, of_each = {}, {x: each.placeholder(f"shared_{i}") for i, x in enumerate(shared)}
    for node in graph.nodes:
        if depends.get(node):
            of_each[node] = each.node_copy(node, of_each.__getitem__)
        else:
            of_once[node] = once.node_copy(node, of_once.__getitem__)
    once.output([of_once[x] for x in shared])
    return once, each


def _changes_tensors(operation):
    return getattr(getattr(operation, "_schema", None), "is_mutable", False)
