"""How each kind of the view is spelled in ATen (the way back of `aten_ops`)."""

from __future__ import annotations

import operator

import torch
from torch.fx import Node as FxNode

from normfold.capture import aten_lower_recurrent as aten_lower_recurrent
from normfold.capture.aten_lower import LOWERINGS, Emitter, lowering
from normfold.capture.aten_spell import END
from normfold.capture.aten_values import torch_dtype
from normfold.graph import Node

__all__ = ["LOWERINGS"]

aten = torch.ops.aten

_PLAIN = {
    "Add": aten.add.Tensor,
    "Sub": aten.sub.Tensor,
    "Mul": aten.mul.Tensor,
    "Div": aten.div.Tensor,
    "Pow": aten.pow.Tensor_Tensor,
    "MatMul": aten.matmul.default,
    "Where": aten.where.self,
    "Greater": aten.gt.Tensor,
    "Less": aten.lt.Tensor,
    "GreaterOrEqual": aten.ge.Tensor,
    "LessOrEqual": aten.le.Tensor,
    "Equal": aten.eq.Tensor,
    "Identity": aten.clone.default,
    "Relu": aten.relu.default,
    "Sigmoid": aten.sigmoid.default,
    "Tanh": aten.tanh.default,
    "Abs": aten.abs.default,
    "Neg": aten.neg.default,
    "Exp": aten.exp.default,
    "Sqrt": aten.sqrt.default,
    "Reciprocal": aten.reciprocal.default,
}


@lowering(*_PLAIN)
def _plain(e: Emitter, node: Node) -> FxNode:
    return e.call(_PLAIN[node.kind], *(e.input(node, slot) for slot in range(len(node.inputs))))


@lowering("Sum", "Max", "Min")
def _many(e: Emitter, node: Node) -> FxNode:
    target = {"Sum": aten.add.Tensor, "Max": aten.maximum.default, "Min": aten.minimum.default}[node.kind]
    result = e.input(node, 0)
    for slot in range(1, len(node.inputs)):
        write = e.call if slot == len(node.inputs) - 1 else e.step
        result = write(target, result, e.input(node, slot))
    return result if len(node.inputs) > 1 else e.call(aten.clone.default, result)


# ---- weights -------------------------------------------------------------------------------------------------------------------


def _padded(e: Emitter, x: FxNode, pads: tuple[int, ...]) -> tuple[FxNode, list[int]]:
    """The input with what a symmetric padding cannot say padded first, and the symmetric rest."""
    count = len(pads) // 2
    begins, ends = pads[:count], pads[count:]
    if begins == ends:
        return x, list(begins)
    listed = [pad for begin, end in zip(reversed(begins), reversed(ends), strict=True) for pad in (begin, end)]
    return e.step(aten.constant_pad_nd.default, x, listed), [0] * count


@lowering("Conv")
def _conv(e: Emitter, node: Node) -> FxNode:
    attrs = node.attrs
    x, padding = _padded(e, e.input(node), tuple(attrs["pads"]))
    strides, dilations = list(attrs["strides"]), list(attrs["dilations"])
    targets = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}
    target = targets[len(strides)]
    return e.call(target, x, e.input(node, 1), e.optional(node, 2), strides, padding, dilations, attrs["group"])


@lowering("ConvTranspose")
def _conv_transpose(e: Emitter, node: Node) -> FxNode:
    attrs = node.attrs
    strides, pads = list(attrs["strides"]), tuple(attrs["pads"])
    half = len(strides)
    if pads[:half] != pads[half:]:
        raise ValueError(f"{node!r}: ATen has no transposed convolution with different pads at both ends")
    targets = {1: aten.conv_transpose1d.default, 2: aten.conv_transpose2d.input, 3: aten.conv_transpose3d.input}
    extra, dilations = list(attrs["output_padding"]), list(attrs["dilations"])
    args = (e.input(node), e.input(node, 1), e.optional(node, 2), strides, list(pads[:half]), extra, attrs["group"], dilations)
    return e.call(targets[half], *args)


@lowering("Gemm")
def _gemm(e: Emitter, node: Node) -> FxNode:
    attrs = node.attrs
    a, b, c = e.input(node), e.input(node, 1), e.optional(node, 2)
    if attrs["transA"]:
        a = e.step(aten.transpose.int, a, -2, -1)
    if not attrs["transB"]:
        b = e.step(aten.t.default, b)
    plain = attrs["alpha"] == 1.0 and (attrs["beta"] == 1.0 or c is None)
    if plain and (c is None or (len(c.meta["val"].shape) == 1 and str(c.meta["val"].shape[0]) == str(b.meta["val"].shape[0]))):
        return e.call(aten.linear.default, a, b, *(() if c is None else (c,)))
    write = e.call if c is None and attrs["alpha"] == 1.0 else e.step
    result = write(aten.linear.default, a, b)
    if attrs["alpha"] != 1.0:
        result = (e.call if c is None else e.step)(aten.mul.Tensor, result, attrs["alpha"])
    return result if c is None else e.call(aten.add.Tensor, result, c, alpha=attrs["beta"])


# ---- norms ---------------------------------------------------------------------------------------------------------------------


@lowering("BatchNormalization")
def _batch(e: Emitter, node: Node) -> FxNode:
    if node.attrs.get("training_mode"):
        raise ValueError(f"{node!r}: statistics of the batch are never written")
    args = (e.input(node), *e.affine(node), e.input(node, 3), e.input(node, 4), 0.1, node.attrs["epsilon"])
    result = e.step(aten._native_batch_norm_legit_no_training.default, *args)
    return e.call(operator.getitem, result, 0)


@lowering("LayerNormalization")
def _layer(e: Emitter, node: Node) -> FxNode:
    x = e.input(node)
    shape = [e.size(x, axis) for axis in range(node.attrs["axis"], len(x.meta["val"].shape))]
    return e.call(aten.layer_norm.default, x, shape, *e.affine(node), node.attrs["epsilon"])


@lowering("RMSNormalization")
def _rms(e: Emitter, node: Node) -> FxNode:
    x = e.input(node)
    shape = [e.size(x, axis) for axis in range(node.attrs["axis"], len(x.meta["val"].shape))]
    return e.call(aten.rms_norm.default, x, shape, e.affine(node)[0], node.attrs["epsilon"])


@lowering("GroupNormalization")
def _group(e: Emitter, node: Node) -> FxNode:
    return e.call(aten.group_norm.default, e.input(node), node.attrs["num_groups"], *e.affine(node), node.attrs["epsilon"])


@lowering("InstanceNormalization")
def _instance(e: Emitter, node: Node) -> FxNode:
    args = (e.input(node), *e.affine(node), None, None, True, 0.1, node.attrs["epsilon"], False)
    return e.call(aten.instance_norm.default, *args)


# ---- activations, reductions ---------------------------------------------------------------------------------------------------


@lowering("LeakyRelu")
def _leaky(e: Emitter, node: Node) -> FxNode:
    return e.call(aten.leaky_relu.default, e.input(node), node.attrs["alpha"])


@lowering("PRelu")
def _prelu(e: Emitter, node: Node) -> FxNode:
    """Any slope that broadcasts: where(x > 0, x, slope x)."""
    x = e.input(node)
    return e.call(aten.where.self, e.step(aten.gt.Scalar, x, 0), x, e.step(aten.mul.Tensor, x, e.input(node, 1)))


@lowering("Clip")
def _clip(e: Emitter, node: Node) -> FxNode:
    return e.call(aten.clamp.default, e.input(node), node.attrs.get("min"), node.attrs.get("max"))


@lowering("Softmax", "LogSoftmax")
def _softmax(e: Emitter, node: Node) -> FxNode:
    target = aten.softmax.int if node.kind == "Softmax" else aten.log_softmax.int
    return e.call(target, e.input(node), node.attrs["axis"])


_REDUCE = {
    "ReduceMean": aten.mean.dim,
    "ReduceSum": aten.sum.dim_IntList,
    "ReduceMax": aten.amax.default,
    "ReduceMin": aten.amin.default,
}


@lowering(*_REDUCE)
def _reduce(e: Emitter, node: Node) -> FxNode:
    return e.call(_REDUCE[node.kind], e.input(node), list(node.attrs["axes"]), bool(node.attrs["keepdims"]))


@lowering("GlobalAveragePool")
def _global(e: Emitter, node: Node) -> FxNode:
    x = e.input(node)
    return e.call(aten.mean.dim, x, list(range(2, len(x.meta["val"].shape))), True)


@lowering("MaxPool", "AveragePool")
def _pool(e: Emitter, node: Node) -> FxNode:
    attrs, spatial = node.attrs, len(node.attrs["kernel_shape"])
    pads = tuple(attrs["pads"])
    if pads[:spatial] != pads[spatial:]:
        raise ValueError(f"{node!r}: ATen has no pool with different pads at both ends")
    maxima = {1: aten.max_pool1d.default, 2: aten.max_pool2d.default, 3: aten.max_pool3d.default}
    means = {1: aten.avg_pool1d.default, 2: aten.avg_pool2d.default, 3: aten.avg_pool3d.default}
    window = (list(attrs["kernel_shape"]), list(attrs["strides"]), list(pads[:spatial]))
    if node.kind == "MaxPool":
        return e.call(maxima[spatial], e.input(node), *window, list(attrs["dilations"]), bool(attrs["ceil_mode"]))
    return e.call(means[spatial], e.input(node), *window, bool(attrs["ceil_mode"]), bool(attrs["count_include_pad"]))


# ---- layout --------------------------------------------------------------------------------------------------------------------


@lowering("Reshape")
def _reshape(e: Emitter, node: Node) -> FxNode:
    x = e.input(node)
    shape = [e.size(x, axis) if size == 0 else size for axis, size in enumerate(node.attrs["shape"])]
    return e.call(aten.reshape.default, x, shape)


@lowering("Flatten")
def _flatten(e: Emitter, node: Node) -> FxNode:
    x, axis = e.input(node), node.attrs["axis"]
    shape = x.meta["val"].shape
    if axis == 1:
        return e.call(aten.reshape.default, x, [e.size(x, 0), -1])
    rows = 1
    for size in shape[:axis]:
        if not isinstance(size, int):
            raise ValueError(f"{node!r}: cannot flatten dynamic sizes in front of axis {axis}")
        rows *= size
    return e.call(aten.reshape.default, x, [rows, -1])


@lowering("Transpose")
def _transpose(e: Emitter, node: Node) -> FxNode:
    return e.call(aten.permute.default, e.input(node), list(node.attrs["perm"]))


@lowering("Squeeze")
def _squeeze(e: Emitter, node: Node) -> FxNode:
    return e.call(aten.squeeze.dims, e.input(node), list(node.attrs["axes"]))


@lowering("Unsqueeze")
def _unsqueeze(e: Emitter, node: Node) -> FxNode:
    *first, last = sorted(node.attrs["axes"])
    result = e.input(node)
    for axis in first:
        result = e.step(aten.unsqueeze.default, result, axis)
    return e.call(aten.unsqueeze.default, result, last)


@lowering("Expand")
def _expand(e: Emitter, node: Node) -> FxNode:
    x, shape = e.input(node), node.attrs["shape"]
    lead = len(shape) - len(x.meta["val"].shape)
    return e.call(aten.expand.default, x, [-1 if size == 1 and place >= lead else size for place, size in enumerate(shape)])


@lowering("Concat")
def _concat(e: Emitter, node: Node) -> FxNode:
    return e.call(aten.cat.default, [e.input(node, slot) for slot in range(len(node.inputs))], node.attrs["axis"])


@lowering("Split")
def _split(e: Emitter, node: Node) -> list[FxNode]:
    parts = e.step(aten.split_with_sizes.default, e.input(node), list(node.attrs["split"]), node.attrs["axis"])
    return [e.step(operator.getitem, parts, place) for place in range(len(node.outputs))]


@lowering("Slice")
def _slice(e: Emitter, node: Node) -> FxNode:
    rows = list(zip(*(node.attrs[key] for key in ("axes", "starts", "ends", "steps")), strict=True))
    result = e.input(node)
    for place, (axis, start, end, step) in enumerate(rows):
        write = e.call if place == len(rows) - 1 else e.step
        if step == -1 and end != -1:  # from `start` down to behind `end`
            cut = (0 if end < -END else end + 1, END if start == -1 else start + 1)
            result = write(aten.flip.default, e.step(aten.slice.Tensor, result, axis, *cut), [axis])
        else:
            result = write(aten.slice.Tensor, result, axis, start, end, step)
    return result


@lowering("Gather")
def _gather(e: Emitter, node: Node) -> FxNode:
    x, index = e.input(node), node.input(1)
    if index is not None and index.const is not None and not index.const.shape:
        return e.call(aten.select.int, x, node.attrs["axis"], int(index.const.read()))
    indices = e.input(node, 1)
    if not indices.meta["val"].shape:
        indices = e.step(aten.unsqueeze.default, indices, 0)
        return e.call(aten.squeeze.dim, e.step(aten.index_select.default, x, node.attrs["axis"], indices), node.attrs["axis"])
    return e.call(aten.index.Tensor, x, [None] * node.attrs["axis"] + [indices])


@lowering("Pad")
def _pad(e: Emitter, node: Node) -> FxNode:
    pads, mode = node.attrs["pads"], node.attrs["mode"]
    rank = len(pads) // 2
    listed = [pads[side * rank + axis] for axis in reversed(range(rank)) for side in (0, 1)]
    if mode == "constant":
        return e.call(aten.constant_pad_nd.default, e.input(node), listed, node.attrs["constant_value"])
    while len(listed) > 2 and not any(listed[-2:]):
        listed = listed[:-2]
    names = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}
    return e.call(aten.pad.default, e.input(node), listed, names[mode])


@lowering("Cast")
def _cast(e: Emitter, node: Node) -> FxNode:
    return e.call(aten._to_copy.default, e.input(node), dtype=torch_dtype(node.attrs["to"]))
