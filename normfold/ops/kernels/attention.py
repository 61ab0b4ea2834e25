"""Attention and rotary embedding (opset 23)."""

from __future__ import annotations

import numpy as np

from normfold.graph import Array, Node
from normfold.ops.kernels.registry import integer, kernel, need, optional, unsupported

_ATTENTION = (
    "is_causal kv_num_heads left_window_size q_num_heads qk_matmul_output_mode right_window_size scale softcap softmax_precision"
)


def _heads(node: Node, x: Array, name: str) -> Array:
    """[N, T, heads * d] -> [N, heads, T, d]; a tensor of rank 4 has its heads apart already."""
    if x.ndim == 4:
        return x
    count = integer(node, name, 0)
    if x.ndim != 3 or count < 1:
        raise unsupported(node, f"{name} {count} on a tensor of rank {x.ndim}")
    return x.reshape(*x.shape[:2], count, -1).transpose(0, 2, 1, 3)


@kernel("Attention", attrs=_ATTENTION)
def attention(node: Node, arrays: list[Array | None]) -> list[Array]:
    """softmax(scale Q K^T + mask) V per head, with grouped heads, a cache, causal and windowed masks, a soft cap."""
    if optional(arrays, 6) is not None:
        raise unsupported(node, "nonpad_kv_seqlen")
    flat = need(node, arrays, 0).ndim == 3
    q = _heads(node, need(node, arrays, 0), "q_num_heads")
    k, v = (_heads(node, need(node, arrays, slot), "kv_num_heads") for slot in (1, 2))
    mask, past_k, past_v = (optional(arrays, slot) for slot in (3, 4, 5))
    k = k if past_k is None else np.concatenate([past_k, k], axis=2)
    v = v if past_v is None else np.concatenate([past_v, v], axis=2)
    if len(node.outputs) > 3 and integer(node, "qk_matmul_output_mode", 0):
        raise unsupported(node, "qk_matmul_output_mode other than 0")
    groups = q.shape[1] // k.shape[1]
    wide_k, wide_v = np.repeat(k, groups, axis=1), np.repeat(v, groups, axis=1)
    scale = node.attrs.get("scale")
    scores = np.matmul(q, np.swapaxes(wide_k, -1, -2)) * (q.shape[-1] ** -0.5 if not scale else float(scale))
    raw = scores
    if mask is not None and mask.shape[-1] < scores.shape[-1]:
        raise unsupported(node, f"a mask of {mask.shape[-1]} for {scores.shape[-1]} keys")
    cap = float(node.attrs.get("softcap") or 0.0)
    if cap and mask is not None:
        raise unsupported(node, "softcap and a mask")  # versions of the specification differ in the order
    if cap:
        scores = cap * np.tanh(scores / cap)
    if mask is not None:
        scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask
    before = 0 if past_k is None else past_k.shape[2]
    reach = np.arange(scores.shape[-1]) - (np.arange(scores.shape[-2])[:, None] + before)  # key less query position
    left, right = integer(node, "left_window_size", -1), integer(node, "right_window_size", -1)
    right = 0 if integer(node, "is_causal", 0) else right
    scores = np.where(((reach <= right) | (right < 0)) & ((reach >= -left) | (left < 0)), scores, -np.inf)
    top = scores.max(axis=-1, keepdims=True)
    weight = np.exp(scores - np.where(top == -np.inf, 0, top))
    total = weight.sum(axis=-1, keepdims=True)
    y = np.matmul(weight / np.where(total == 0, 1, total), wide_v)  # a query that may see nothing gets zeros
    if flat:
        y = y.transpose(0, 2, 1, 3).reshape(y.shape[0], y.shape[2], -1)
    return [y, k, v, raw][: max(1, len(node.outputs))]


@kernel("RotaryEmbedding", attrs="interleaved num_heads rotary_embedding_dim")
def rotary_embedding(node: Node, arrays: list[Array | None]) -> list[Array]:
    """The first rotary_embedding_dim features of each head turned, in pairs, by the angle of their position."""
    x, cos, sin, positions = need(node, arrays, 0), need(node, arrays, 1), need(node, arrays, 2), optional(arrays, 3)
    heads = _heads(node, x, "num_heads")  # [N, heads, T, d]
    dim = integer(node, "rotary_embedding_dim", 0) or heads.shape[-1]
    if positions is not None:
        cos, sin = cos[positions], sin[positions]
    cos, sin = cos[:, None, :, : dim // 2], sin[:, None, :, : dim // 2]
    part, rest = heads[..., :dim], heads[..., dim:]
    interleaved = integer(node, "interleaved", 0)
    a, b = (part[..., 0::2], part[..., 1::2]) if interleaved else np.split(part, 2, axis=-1)
    turned = (a * cos - b * sin, a * sin + b * cos)
    both = np.stack(turned, axis=-1).reshape(part.shape) if interleaved else np.concatenate(turned, axis=-1)
    y = np.concatenate([both, rest], axis=-1)
    return [y if x.ndim == 4 else y.transpose(0, 2, 1, 3).reshape(x.shape)]
