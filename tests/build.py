"""A few lines to build a view by hand in tests."""

from __future__ import annotations

from typing import Any

import numpy as np

from normfold.graph import Array, Graph, Node, Value


class Builder:
    """``b = Builder(seed); x = b.input("x", ("N", 3, 8, 8)); y = b.conv(x, 4); b.output(y)``."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.graph = Graph("test")
        self._count = 0

    def input(self, name: str, shape: tuple[Any, ...]) -> Value:
        value = self.graph.value(name, shape, np.float32)
        self.graph.inputs.append(value)
        return value

    def output(self, *values: Value) -> Graph:
        self.graph.outputs.extend(values)
        return self.graph.validate()

    def const(self, array: Any, name: str = "") -> Value:
        self._count += 1
        return self.graph.constant(name or f"c{self._count}", np.asarray(array, dtype=np.float32))

    def op(self, kind: str, *inputs: Value | None, shape: tuple[Any, ...], name: str = "", outputs: int = 1, **attrs: Any) -> Any:
        """`target` becomes the attribute "shape"."""
        self._count += 1
        if "target" in attrs:
            attrs["shape"] = attrs.pop("target")
        name = name or f"{kind.lower()}{self._count}"
        shapes = shape if outputs > 1 else (shape,)
        values = [self.graph.value(name if i == 0 else f"{name}_{i}", item, np.float32) for i, item in enumerate(shapes)]
        self.graph.append(Node(kind, list(inputs), values, attrs, name, name))
        return values if outputs > 1 else values[0]

    def weight(self, *shape: int) -> Value:
        return self.const(self.rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]) or 1))

    def conv(self, x: Value, out: int, kernel: int = 1, pad: int = 0, group: int = 1, bias: bool = True, name: str = "") -> Value:
        assert x.shape is not None
        inp, size = int(x.shape[1] or 0), tuple(n + 2 * pad - kernel + 1 if isinstance(n, int) else n for n in x.shape[2:])
        spatial = len(size)
        weight = self.weight(out, inp // group, *(kernel,) * spatial)
        inputs = [x, weight] + ([self.const(self.rng.standard_normal(out))] if bias else [])
        attrs = {"pads": (pad,) * 2 * spatial, "strides": (1,) * spatial, "dilations": (1,) * spatial, "group": group}
        return self.op("Conv", *inputs, shape=(x.shape[0], out, *size), name=name, kernel_shape=(kernel,) * spatial, **attrs)

    def gemm(self, x: Value, out: int, name: str = "") -> Value:
        assert x.shape is not None
        inputs = [x, self.weight(out, int(x.shape[-1] or 0)), self.const(self.rng.standard_normal(out))]
        return self.op("Gemm", *inputs, shape=(*x.shape[:-1], out), name=name, alpha=1.0, beta=1.0, transA=0, transB=1)

    def bn(self, x: Value, signed: bool = False, gamma: Array | None = None, var: Array | None = None, name: str = "") -> Value:
        assert x.shape is not None
        channels = int(x.shape[1] or 0)
        if gamma is None:
            gamma = self.rng.uniform(0.5, 1.5, channels)
            if signed:
                gamma = gamma * np.where(self.rng.random(channels) < 0.4, -1, 1)
        beta, mean = self.rng.standard_normal(channels), self.rng.standard_normal(channels)
        var = self.rng.uniform(0.5, 1.5, channels) if var is None else var
        parameters = [self.const(item) for item in (gamma, beta, mean, var)]
        return self.op("BatchNormalization", x, *parameters, shape=x.shape, name=name, epsilon=1e-5, training_mode=0)

    def relu(self, x: Value, name: str = "") -> Value:
        assert x.shape is not None
        return self.op("Relu", x, shape=x.shape, name=name)

    def add(self, *values: Value, name: str = "") -> Value:
        shape = max((value.shape or () for value in values), key=len)
        return self.op("Add", *values, shape=shape, name=name)

    def concat(self, *values: Value, name: str = "") -> Value:
        shape = list(values[0].shape or ())
        shape[1] = sum(int((value.shape or ())[1] or 0) for value in values)
        return self.op("Concat", *values, shape=tuple(shape), name=name, axis=1)
