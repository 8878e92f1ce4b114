"""The graph of a network for inference: batch norms folded into convolutions, parallel ones merged, half precision.

    graph = trace(module, (images,), ({0: Dim("batch")},))     # torch.export's operators, as a torch.fx.GraphModule
    fold_batch_norms(graph)
    merge_parallel(graph)

Works for any network that torch.export takes. The module itself stays as it is: the graph has weights of its own.

- A batch norm after a convolution or a linear layer becomes part of that layer's weights, one of features that stands
  behind something else (a BNNeck behind a ReLU) a product and a sum.
- 1x1 convolutions that read the same map, and whose results go on through layers of one shape into one concatenation
  (HA-CNN's Inception A), become one convolution, and what follows one grouped convolution; nothing is cut apart again.
  Where the results go different ways (Inception B) they stay separate. Merged and cut apart, they were slower by a
  tenth on a CPU: onnxruntime leaves its blocked layout for a Split, and comes back after it.
- In half precision weights and activations are fp16. What a network computes in fp32 (HA-CNN's regions, GeM) stays so,
  and so do L2 norms: 512 squares easily exceed 65,504. Weights are rounded after folding.
"""

import copy
import operator

import torch
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

aten = torch.ops.aten
CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)


def trace(module, examples, dynamic_shapes):
    """The module's operators as a GraphModule, with names and weights of the module, and its axes as free as given."""
    program = torch.export.export(module, examples, dynamic_shapes=dynamic_shapes)
    graph = program.module(check_guards=False)
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    axes = {(node, axis): dim for node, dims in zip(inputs, dynamic_shapes, strict=True) for axis, dim in dims.items()}
    first = {}  # Dim -> its first (input, axis)
    for place, dim in axes.items():
        first.setdefault(dim, place)
    for node in list(graph.graph.nodes):
        if node.target is aten.sym_size.int and node.args in axes:
            node.args = first[axes[node.args]]  # else torch, which gets this graph again, proves less about it
        elif node.target is aten._assert_tensor_metadata.default:
            graph.graph.erase_node(node)
        elif node.target is aten.to.dtype and node.args[0].meta["val"].dtype == node.args[1]:
            node.replace_all_uses_with(node.args[0])
    return tidy(graph)


def tidy(graph):
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.delete_all_unused_submodules()
    used = {node.target for node in graph.graph.nodes if node.op == "get_attr"}
    for name, _ in [*graph.named_parameters(), *graph.named_buffers()]:
        if name not in used:
            owner, _, last = name.rpartition(".")
            delattr(graph.get_submodule(owner), last)
    graph.recompile()
    return graph


def read(graph, node):
    """The tensor that a get_attr node reads; None for None."""
    return None if node is None else operator.attrgetter(node.target)(graph)


def add_weight(graph, like, value, before):
    """A node that reads a new weight, named after the one that `like` reads."""
    name, number = like.target.replace(".", "_"), 1
    while hasattr(graph, f"{name}_{number}"):
        number += 1
    graph.register_parameter(f"{name}_{number}", torch.nn.Parameter(value.detach().clone(), requires_grad=False))
    with graph.graph.inserting_before(before):
        return graph.graph.get_attr(f"{name}_{number}")


def arguments(node):
    """name -> value for all arguments of an operator's node, defaults included."""
    schema = node.target._schema.arguments
    found = {a.name: a.default_value for a in schema if a.has_default_value()}
    return found | dict(zip([a.name for a in schema], node.args, strict=False)) | dict(node.kwargs)


def is_weight(node):
    return isinstance(node, torch.fx.Node) and node.op == "get_attr"


def fold_batch_norms(graph):
    """Batch norms in evaluation mode right after a convolution or linear layer go into its weights."""
    for norm in list(graph.graph.nodes):
        if norm.target is not aten.batch_norm.default or arguments(norm)["training"]:
            continue
        layer, given = norm.args[0], arguments(norm)
        foldable = layer.target in (*CONVOLUTIONS, aten.linear.default) and len(layer.users) == 1
        if not foldable or not is_weight(layer.args[1]):  # computed, not stored
            if norm.meta["val"].dim() == 2:
                multiply_and_add(graph, norm, given)
            continue
        fuse = fuse_linear_bn_weights if layer.target is aten.linear.default else fuse_conv_bn_weights
        weight, bias = layer.args[1], arguments(layer)["bias"]
        statistics = [read(graph, given[name]) for name in ("running_mean", "running_var")]
        scale, shift = (read(graph, given[name]) for name in ("weight", "bias"))
        folded = fuse(read(graph, weight), read(graph, bias), *statistics, given["eps"], scale, shift)
        new = [add_weight(graph, weight, value, layer) for value in folded]
        layer.args = (layer.args[0], *new, *layer.args[3:])
        layer.kwargs = {}
        norm.replace_all_uses_with(layer)
        graph.graph.erase_node(norm)
    return tidy(graph)


def multiply_and_add(graph, norm, given):
    """A batch norm of features (B, D) with no layer to go into, such as a BNNeck behind a ReLU: a product and a sum."""
    mean, var, weight, bias = (read(graph, given[key]) for key in ("running_mean", "running_var", "weight", "bias"))
    scale = (var + given["eps"]).rsqrt() * (1 if weight is None else weight)
    shift = (0 if bias is None else bias) - mean * scale
    new = [add_weight(graph, given["running_mean"], value, norm) for value in (scale, shift)]
    with graph.graph.inserting_before(norm):
        product = graph.graph.call_function(aten.mul.Tensor, (norm.args[0], new[0]))
        result = graph.graph.call_function(aten.add.Tensor, (product, new[1]))
    product.meta["val"] = result.meta["val"] = norm.meta["val"]
    norm.replace_all_uses_with(result)
    graph.graph.erase_node(norm)


# ----------------------------------------------------------------------------------------------------------------------
# Parallel convolutions


def settings(node):
    """What two convolutions must have in common to become one: all but weights and input."""
    given = arguments(node)
    pairs = [given[name] for name in ("stride", "padding", "dilation")]  # one number, a list of one, or of two
    pairs = [(value, value) if isinstance(value, int) else tuple(value) * (2 // len(value)) for value in pairs]
    return (*pairs, given["groups"])


def chain(conv):
    """[convolution, ReLU, convolution, ReLU, ...]: the nodes that follow with nobody else reading in between."""
    found = [conv]
    while len(found[-1].users) == 1:
        (follower,) = found[-1].users
        step = follower.target is aten.relu.default or follower.target is aten.conv2d.default
        if not step or follower.args[0] is not found[-1]:
            break
        found.append(follower)
    return found


def shape_of(graph, node):
    """What makes two nodes of a chain alike: operator, size of the weights, settings."""
    if node.target is not aten.conv2d.default:
        return node.target
    biased = arguments(node)["bias"] is not None
    return tuple(read(graph, node.args[1]).shape), biased, settings(node)


def mergeable(graph, node):
    """A plain 1x1 convolution, stride 1, with weights that are stored."""
    if node.target is not aten.conv2d.default or not is_weight(node.args[1]):
        return False
    return tuple(read(graph, node.args[1]).shape[2:]) == (1, 1) and arguments(node)["groups"] == 1


def merge_parallel(graph):
    """Chains alike that begin with 1x1 convolutions of one map and end side by side in one concatenation: see above."""
    readers = {}
    for node in graph.graph.nodes:
        if mergeable(graph, node):
            readers.setdefault(node.args[0], []).append(node)
    for entering, convs in readers.items():
        alike = {}
        for links in map(chain, convs):
            joined = list(links[-1].users)
            if len(joined) == 1 and joined[0].target is aten.cat.default and arguments(joined[0])["dim"] == 1:
                key = joined[0], *(shape_of(graph, node) for node in links)
                alike.setdefault(key, []).append(links)
        for (joined, *_), chains in alike.items():
            ends, parts = [links[-1] for links in chains], list(joined.args[0])
            first = parts.index(ends[0])
            if len(chains) > 1 and parts[first : first + len(ends)] == ends:
                merged = merge_chains(graph, entering, chains)
                joined.args = ([*parts[:first], merged, *parts[first + len(ends) :]], *joined.args[1:])
    return tidy(graph)


def merge_chains(graph, entering, chains):
    """The node that gives all chains' results, their channels one after the other."""
    x, last = entering, max((links[-1] for links in chains), key=list(graph.graph.nodes).index)
    for number, nodes in enumerate(zip(*chains, strict=True)):
        first = nodes[0]
        if first.target is aten.relu.default:
            with graph.graph.inserting_before(last):
                x = graph.graph.call_function(first.target, (x,))
            continue
        new = [add_weight(graph, first.args[1], torch.cat([read(graph, n.args[1]) for n in nodes]), last)]
        biases = [arguments(node)["bias"] for node in nodes]
        new.append(biases[0] and add_weight(graph, first.args[1], torch.cat([read(graph, b) for b in biases]), last))
        given = arguments(first)
        groups = given["groups"] * (len(chains) if number else 1)  # the first ones read the same channels
        rest = [given[name] for name in ("stride", "padding", "dilation")]
        with graph.graph.inserting_before(last):
            x = graph.graph.call_function(aten.conv2d.default, (x, *new, *rest, groups))
    return x


def fuse(graph):
    """All of the above that leaves the precision as it is; returns the graph, which is changed."""
    return merge_parallel(fold_batch_norms(keep_what_is_read_in_fp32(graph)))


# ----------------------------------------------------------------------------------------------------------------------
# Half precision


def halve(module, trace_it):
    """The graph of a module in fp16, folded and merged; trace_it: module -> graph, as trace gives it.

    It is that of a copy in half precision, so the network says itself what it computes in fp32; but the weights are
    the module's own until all is folded.
    """
    graph = trace_it(copy.deepcopy(module).half())
    halved = {name for name, value in graph.state_dict().items() if value.dtype == torch.float16}
    graph.load_state_dict(module.state_dict(), strict=False, assign=True)
    keep_what_is_read_in_fp32(graph)  # before the next line, which takes down its names
    in_fp32 = {node.target for node in graph.graph.nodes if node.op == "get_attr"} - halved
    normalise_in_fp32(fuse(graph))
    for name, value in graph.state_dict().items():
        if value.dtype == torch.float32 and name not in in_fp32:
            owner, _, last = name.rpartition(".")
            setattr(graph.get_submodule(owner), last, torch.nn.Parameter(value.half(), requires_grad=False))
    return graph


def casts_to_fp32(node):
    return node.target is aten.to.dtype and node.args[1] is torch.float32


def keep_what_is_read_in_fp32(graph):
    """Weights that the network turns to fp32 wherever it reads them are stored as that, not rounded."""
    for node in list(graph.graph.nodes):
        if is_weight(node) and node.users and all(map(casts_to_fp32, node.users)):
            kept = add_weight(graph, node, read(graph, node).float(), next(iter(node.users)))
            for cast in list(node.users):
                cast.replace_all_uses_with(kept)
                graph.graph.erase_node(cast)
    return tidy(graph)


def normalise_in_fp32(graph):
    """F.normalize of fp16 features: squares, sum, root and quotient in fp32, the result in fp16 again."""
    for norm in list(graph.graph.nodes):
        x = norm.args[0] if norm.target is aten.linalg_vector_norm.default else None
        if x is None or x.meta["val"].dtype != torch.float16:
            continue
        steps = [norm]
        for target in (aten.clamp_min.default, aten.expand_as.default, aten.div.Tensor):
            steps += [user for user in steps[-1].users if user.target is target]
        if len(steps) != 4:
            continue  # a norm for another purpose
        with graph.graph.inserting_before(norm):
            exact = graph.graph.call_function(aten.to.dtype, (x, torch.float32))
        for step in steps:
            step.replace_input_with(x, exact)
        with graph.graph.inserting_after(steps[-1]):
            short = graph.graph.call_function(aten.to.dtype, (steps[-1], torch.float16))
        steps[-1].replace_all_uses_with(short, delete_user_cb=lambda user, short=short: user is not short)
    tidy(graph)
