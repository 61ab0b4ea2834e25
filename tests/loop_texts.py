"""Loop, Scan and If around norms, in ONNX's text form, with weights and inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser

from normfold.capture.onnx import from_onnx
from normfold.capture.onnx_write import to_model
from normfold.capture.tidy import tidy
from normfold.export.to_onnx import proto_bytes
from normfold.graph import Array
from normfold.pipeline import Options
from normfold.pipeline.rewriting import Outcome, rewrite
from normfold.verify.certificate import certificate
from routes import run_onnx

STEP = """
  a = MatMul (xt, w)
  an = BatchNormalization (a, gamma1, beta1, mean1, var1)
  b = MatMul (h, u)
  bn = BatchNormalization (b, gamma2, beta2, mean2, var2)
  sum = Add (an, bn)
  biased = Add (sum, bias)
  next = Tanh (biased)
"""
SCAN = (
    """
net (float[T, N, 3] x, float[N, 4] h0) => (float[N, 4] last, float[T, N, 4] all)
{
  last, all = Scan <num_scan_inputs = 1, body = step (float[N, 4] h, float[N, 3] xt) => (float[N, 4] next, float[N, 4] y) {
"""
    + STEP
    + """
  y = Identity (next)
  }> (h0, x)
}"""
)
BACKWARDS = (
    """
net (float[N, 3, T] x, float[N, 4] h0) => (float[N, 4] last, float[N, T, 4] all)
{
  last, all = Scan <num_scan_inputs = 1, scan_input_axes = [2], scan_input_directions = [1], scan_output_axes = [1],
    scan_output_directions = [1], body = step (float[N, 4] h, float[N, 3] xt) => (float[N, 4] next, float[N, 4] y) {
"""
    + STEP
    + """
  y = Identity (next)
  }> (h0, x)
}"""
)
LOOP = (
    """
net (float[T, N, 3] x, float[N, 4] h0) => (float[N, 4] last, float[S, N, 4] all)
{
  shape = Shape (x)
  zero = Constant <value = int64 {0}> ()
  steps = Gather (shape, zero)
  last, all = Loop <body = step (int64 t, bool going, float[N, 4] h) => (bool on, float[N, 4] next, float[N, 4] y) {
    xt = Gather <axis = 0> (x, t)
"""
    + STEP
    + """
    y = Identity (next)
    far = ReduceMax <keepdims = 0> (next)
    limit = Constant <value = float {0.9999}> ()
    on = Less (far, limit)
  }> (steps, , h0)
  never = Add (last, last)
}"""
)
ZEROS = """  one = Constant <value = int64 {1}> ()
  two = Constant <value = int64 {2}> ()
  rows = Gather (shape, one)
  first = Constant <value = int64[1] {0}> ()
  many = Unsqueeze (rows, first)
  four = Constant <value = int64[1] {4}> ()
  sizes = Concat <axis = 0> (many, four)
  h0 = ConstantOfShape (sizes)
  last, all = Loop"""


def changed(source: str, *pairs: tuple[str, str]) -> str:
    for old, new in pairs:
        assert old in source
        source = source.replace(old, new)
    return source


def taking(*lines: str) -> tuple[str, str]:
    """x_t is element p, which `lines` compute, in the place of element t."""
    return "xt = Gather <axis = 0> (x, t)", "\n".join((*lines, "xt = Gather <axis = 0> (x, p)"))


GIVEN = changed(LOOP, ("on = Less (far, limit)", "on = Identity (going)"))
OPEN = changed(GIVEN, (", float[N, 4] h0)", ")"), ("  last, all = Loop", ZEROS))
COUNTED = changed(
    OPEN,
    ("body = step (int64 t, bool going,", "body = step (int64 number, bool going, int64 t,"),
    ("=> (bool on, float", "=> (bool on, int64 t1, float"),
    ("last, all = Loop", "begin = Less (zero, steps)\n none = Identity (zero)\n end, last, all = Loop"),
    ("on = Identity (going)", "t1 = Add (t, one)\n on = Less (t1, steps)"),
    ("(steps, , h0)", "(, begin, none, h0)"),
)
WAYS = {
    "forwards": OPEN,
    "backwards": changed(OPEN, taking("m = Sub (steps, one)", "p = Sub (m, t)")),
    "from the end": changed(OPEN, taking("m = Neg (one)", "p = Sub (m, t)")),
    "kept axis": changed(
        OPEN, taking("p = Unsqueeze (t, first)"), ("xt = Gather", "xk = Gather"), ("(x, p)", "(x, p)\n xt = Squeeze (xk, first)")
    ),
    "another axis": changed(
        OPEN,
        ("float[T, N, 3] x", "float[N, 3, T] x"),
        ("axis = 0> (x, t)", "axis = 2> (x, t)"),
        ("steps = Gather (shape, zero)", "third = Constant <value = int64 {2}> ()\n steps = Gather (shape, third)"),
        ("Gather (shape, one)", "Gather (shape, zero)"),
    ),
    "size in the body": changed(
        OPEN, taking("s = Shape <start = 0, end = 1> (x)", "n = Squeeze (s, first)", "m = Sub (n, one)", "p = Sub (m, t)")
    ),
    "the only size": changed(
        OPEN, ("steps = Gather (shape, zero)", "only = Shape <start = 0, end = 1> (x)\n steps = Squeeze (only)")
    ),
    "counted": COUNTED,
}
"""Loops of open length that start from zeros."""
IF = """
net (float[N, 3] x, float[N, 4] h0) => (float[N, 4] y)
{
  total = ReduceSum <keepdims = 0> (x)
  nothing = Constant <value = float {0.0}> ()
  positive = Greater (total, nothing)
  y = If (positive) <then_branch = one () => (float[N, 4] y1) {
      a1 = MatMul (x, w)
      y1 = BatchNormalization (a1, gamma1, beta1, mean1, var1)
    }, else_branch = other () => (float[N, 4] y2) {
      a2 = MatMul (h0, u)
      n2 = BatchNormalization (a2, gamma2, beta2, mean2, var2)
      y2 = Relu (n2)
    }>
}"""


def model(text: str, opset: int = 17) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    graph = onnx.parser.parse_graph(text)
    tensors: dict[str, Array] = {
        "w": rng.standard_normal((3, 4)),
        "u": rng.standard_normal((4, 4)) / 2,
        "bias": rng.standard_normal(4),
    }
    for name in "12":
        tensors[f"gamma{name}"] = rng.uniform(0.5, 1.5, 4) * np.array([1, -1, 1, 1])
        tensors[f"beta{name}"], tensors[f"mean{name}"] = rng.standard_normal(4), rng.standard_normal(4)
        tensors[f"var{name}"] = rng.uniform(0.5, 2, 4)
    used = text.replace(",", " ").replace(")", " ").replace("(", " ").split()
    graph.initializer.extend(
        onnx.numpy_helper.from_array(array.astype(np.float32), name) for name, array in tensors.items() if name in used
    )
    made = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid("acme", 1)], ir_version=8
    )
    onnx.checker.check_model(made, full_check=True)
    return made


def feeds(made: onnx.ModelProto, seed: int, steps: int) -> dict[str, Array]:
    rng, sizes = np.random.default_rng(seed), {"T": steps, "N": 2}
    return {
        item.name: rng.standard_normal([d.dim_value or sizes[d.dim_param] for d in item.type.tensor_type.shape.dim]).astype(
            np.float32
        )
        for item in made.graph.input
    }


def judged(proto: onnx.ModelProto, given: list[dict[str, Array]], **options: Any) -> tuple[Outcome, onnx.ModelProto]:
    """Rewritten, certified on every feed and run beside the original."""
    graph = from_onnx(proto)
    tidy(graph)
    outcome = rewrite(graph, Options(**{"objective": "norms"} | options))
    data = proto_bytes(to_model(outcome.graph))
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    for feed in given:
        failed = [item for item in certificate(graph, outcome.graph, feed) if not item.passed]
        assert not failed, failed[:3]
        for expected, came in zip(run_onnx(proto.SerializeToString(), feed), run_onnx(data, feed), strict=True):
            np.testing.assert_allclose(came, expected, rtol=2e-5, atol=2e-5)
    return outcome, onnx.load_from_string(data)
