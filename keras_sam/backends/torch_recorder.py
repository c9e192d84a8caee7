"""Writes down what torch is asked while a model runs, as programs that ask the same again."""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import keras
import torch

from keras_sam.backends import private


def can_record() -> bool:
    """Whether this version of torch tells which operations it is asked for."""
    return _dispatch_mode() is not None


def _dispatch_mode():
    return private.look_up("torch.utils._python_dispatch", "TorchDispatchMode")


def record(
    model: keras.Model,
    inputs: Any,
    given: Sequence[torch.Tensor],
    changing: Sequence[torch.Tensor],
) -> tuple[Any, tuple[torch.fx.GraphModule, torch.fx.GraphModule]]:
    """Calls the model with `inputs`, which are made of some of `given` and of `changing`.

    Returns the outputs, and two functions for other numbers: of `given`, which holds the model's
    variables too, to a list of tensors, and of these and `changing` to the outputs.

    Raises:
        TypeError: if a layer looks at a tensor's numbers.
    """
    graph = torch.fx.Graph()
    constants = torch.nn.Module()
    placeholders = {
        id(x): graph.placeholder(f"given_{i}") for i, x in enumerate([*given, *changing])
    }

    def node_of(x):
        if not isinstance(x, torch.Tensor):
            return x
        if id(x) in placeholders:
            return placeholders[id(x)]
        if not hasattr(x, "_node"):  # made from a number in the code
            name = f"constant_{len(list(constants.buffers()))}"
            constants.register_buffer(name, x)
            x._node = graph.get_attr(name)
        return x._node

    class Recorder(_dispatch_mode()):
        """Adds each operation to the graph. A tensor carries its node, so none is kept alive."""

        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            outputs = operation(*args, **(kwargs or {}))
            if not _has_tensors(outputs):
                if _has_tensors([args, kwargs]):
                    raise TypeError(f"A layer looks at a tensor's numbers, by {operation}.")
                return outputs  # what torch can do here, say
            node = graph.call_function(operation, _map(node_of, args), _map(node_of, kwargs or {}))
            if isinstance(outputs, torch.Tensor):
                outputs._node = node
            else:
                for i, output in enumerate(outputs):
                    output._node = graph.call_function(operator.getitem, (node, i))
            return outputs

    with Recorder():
        outputs = model(inputs, training=False)
    graph.output(_map(node_of, outputs))
    graph.eliminate_dead_code()  # what layers compute and no output needs
    parts = split(graph, [placeholders[id(x)] for x in changing])
    return outputs, tuple(torch.fx.GraphModule(constants, part) for part in parts)


def _map(function: Callable[[Any], Any], x: Any) -> Any:
    """A function of each leaf of nested tuples, lists and dicts."""
    if isinstance(x, dict):
        return {name: _map(function, part) for name, part in x.items()}
    if isinstance(x, tuple | list):
        return (tuple if isinstance(x, tuple) else list)(_map(function, part) for part in x)
    return function(x)


def _has_tensors(x: Any) -> bool:
    found = []
    _map(lambda leaf: found.append(isinstance(leaf, torch.Tensor)), x)
    return any(found)


def split(
    graph: torch.fx.Graph, changing: Sequence[torch.fx.Node]
) -> tuple[torch.fx.Graph, torch.fx.Graph]:
    """The part of a graph that does not depend on the placeholders `changing`, and the rest.

    The first returns what the second takes before `changing`.
    """
    depends = dict.fromkeys(changing, True)
    # Where an operation changes a tensor, all are left in their order.
    in_order = any(_may_change_tensors(node) for node in graph.nodes)
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


def _may_change_tensors(node: torch.fx.Node) -> bool:
    if node.op != "call_function" or node.target is operator.getitem:
        return False
    schema = private.look_up(node.target, "_schema")
    is_mutable = private.look_up(schema, "is_mutable")
    return is_mutable is None or is_mutable
