"""The graph of a network for inference: batch norms folded into convolutions, parallel ones merged, half precision.

    graph = trace(module, (images,), ({0: Dim("batch")},))     # torch.export's operators, as a torch.fx.GraphModule
    fold_batch_norms(graph)
    merge_parallel(graph)

Works for any network that torch.export takes. The module itself stays as it is: the graph has weights of its own.

- A batch norm after a convolution or a linear layer becomes part of that layer's weights, one of features that stands
  behind something else (a BNNeck behind a ReLU) a product and a sum.
- 1x1 convolutions that read the same map, and whose results go on through layers of one shape into one concatenation,
  side by side (HA-CNN's Inception A), become one, and what follows one grouped convolution; nothing is cut apart again.
  Where the results go different ways (Inception B) they stay separate. Merged and cut apart, they were slower by a
  tenth on a CPU: onnxruntime leaves its blocked layout for a Split, and comes back after it.
- In half precision weights and activations are fp16. What a network computes in fp32 (HA-CNN's regions, GeM) stays so,
  and so do L2 norms: 512 squares easily exceed 65,504. Weights are rounded after folding.
"""

import copy
import itertools
import operator

import torch

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
    """Batch norms in evaluation mode, x * scale + shift, go into the weights of the layer right before them.

    One of features (B, D) with no layer to go into, such as a BNNeck behind a ReLU, becomes a product and a sum.
    """
    for norm in list(graph.graph.nodes):
        if norm.target is not aten.batch_norm.default or arguments(norm)["training"]:
            continue
        x, given = norm.args[0], arguments(norm)
        mean, var, weight, bias = (read(graph, given[key]) for key in ("running_mean", "running_var", "weight", "bias"))
        scale = (var + given["eps"]).rsqrt() * (1 if weight is None else weight)
        shift = (0 if bias is None else bias) - mean * scale
        if x.target in (*CONVOLUTIONS, aten.linear.default) and len(x.users) == 1 and is_weight(x.args[1]):
            kernel, offset = (read(graph, arguments(x)[key]) for key in ("weight", "bias"))
            kernel = kernel * scale.view(-1, *[1] * (kernel.dim() - 1))
            shift = shift if offset is None else offset * scale + shift
            new = [add_weight(graph, x.args[1], value, x) for value in (kernel, shift)]
            x.args, x.kwargs, result = (x.args[0], *new, *x.args[3:]), {}, x
        elif norm.meta["val"].dim() == 2:
            new = [add_weight(graph, given["running_mean"], value, norm) for value in (scale, shift)]
            with graph.graph.inserting_before(norm):
                product = graph.graph.call_function(aten.mul.Tensor, (x, new[0]))
                result = graph.graph.call_function(aten.add.Tensor, (product, new[1]))
            product.meta["val"] = result.meta["val"] = norm.meta["val"]
        else:
            continue
        norm.replace_all_uses_with(result)
        graph.graph.erase_node(norm)
    return tidy(graph)


# ----------------------------------------------------------------------------------------------------------------------
# Parallel convolutions


def chain_to(node):
    """(what the first one reads, [convolution, ReLU, ..., node]): all before it with nobody else reading in between."""
    found = []
    while node.target in (aten.relu.default, aten.conv2d.default) and len(node.users) == 1:
        found.insert(0, node)
        node = node.args[0]
    return node, found


def traits(graph, node):
    """What makes nodes of chains alike: operator, and of a convolution size of the weights, bias or none, settings."""
    if node.target is not aten.conv2d.default:
        return node.target
    given, shape = arguments(node), read(graph, node.args[1]).shape
    return shape, given["bias"] is None, *(str(given[name]) for name in ("stride", "padding", "dilation", "groups"))


def merge_parallel(graph):
    """Chains alike that begin with 1x1 convolutions of one map and stand side by side in a concatenation: see above."""

    def key(part):
        entering, nodes = chain_to(part)
        convs = [node for node in nodes if node.target is aten.conv2d.default]
        if nodes[:1] != convs[:1] or not convs or not all(is_weight(conv.args[1]) for conv in convs):
            return object()  # like no other, not even itself
        pointwise = read(graph, convs[0].args[1]).shape[2:] == (1, 1) and arguments(convs[0])["groups"] == 1
        return (entering, *(traits(graph, node) for node in nodes)) if pointwise else object()

    for joined in list(graph.graph.nodes):
        if joined.target is aten.cat.default and arguments(joined)["dim"] == 1:
            runs = [list(alike) for _, alike in itertools.groupby(joined.args[0], key)]
            parts = [run[0] if len(run) == 1 else merge_chains(graph, run, joined) for run in runs]
            joined.args = (parts, *joined.args[1:])
    return tidy(graph)


def merge_chains(graph, parts, before):
    """The node that gives the results of the chains to all parts, their channels one after the other."""
    x, _ = chain_to(parts[0])
    for number, nodes in enumerate(zip(*(chain_to(part)[1] for part in parts), strict=True)):
        first, given = nodes[0], [arguments(node) for node in nodes]
        if first.target is aten.relu.default:
            args = (x,)
        else:
            weights = [[each[name] for each in given] for name in ("weight", "bias")]
            new = [values[0] and add_weight(graph, values[0], torch.cat([read(graph, v) for v in values]), before)
                   for values in weights]  # fmt: skip
            groups = given[0]["groups"] * (len(nodes) if number else 1)  # the first ones read the same channels
            args = (x, *new, *(given[0][name] for name in ("stride", "padding", "dilation")), groups)
        with graph.graph.inserting_before(before):
            x = graph.graph.call_function(first.target, args)
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


def other_weights(halved, exact):
    """Names of the weights of a graph in fp16 that are not those of the graph in fp32, rounded. What one of the two
    alone has is left out."""
    right, others = exact.state_dict(), []
    for name, value in halved.state_dict().items():
        if name in right and not torch.equal(value, right[name].to(value.dtype)):  # false for other shapes, too
            others.append(name)
    return others


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
