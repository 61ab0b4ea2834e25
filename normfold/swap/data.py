"""The caller's samples as batches: cut along the first axis of one call, or the calls as they came."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from normfold.capture.program_refusals import cloned
from normfold.errors import UsageError
from normfold.graph import Array
from normfold.load.calls import module_calls
from normfold.load.factory import call, resolve
from normfold.load.inputs import read_data
from normfold.load.loaded import Call

EVERY = 5  # every fifth sample is held out where no other data is
LABELS = "labels"
BATCH = 256  # samples a call where nothing is trained


class Data:
    """Samples: one call whose tensors all have them on axis 0, or several calls, each one a batch as it is.

    Raises UsageError where the tensors of the one call do not agree on the number of samples.
    """

    def __init__(self, calls: Sequence[Call]) -> None:
        self.calls = list(calls)
        self.samples = len(self.calls) if self.whole else _samples(self.calls[0])

    @property
    def whole(self) -> bool:
        """True when calls are batches that are not cut."""
        return len(self.calls) > 1

    def take(self, index: Sequence[int]) -> list[Call]:
        """The samples with these numbers, copied: one call, or several where calls are batches."""
        if self.whole:
            return [cloned(self.calls[number]) for number in index]  # a network may write into its input
        places = torch.as_tensor(list(index), dtype=torch.long)
        return [pytree.tree_map(lambda leaf: leaf[places] if isinstance(leaf, Tensor) else leaf, self.calls[0])]

    def kept(self, index: Sequence[int]) -> Data:
        """These samples as data of their own."""
        return Data(self.take(index))

    def batches(self, size: int) -> Iterator[Call]:
        """All samples in order, at most `size` in a call."""
        for start in range(0, self.samples, 1 if self.whole else size):
            yield from self.take(range(start, min(start + (1 if self.whole else size), self.samples)))

    def apart(self) -> tuple[Data, Data]:
        """(to fit, held out): every fifth sample is held out.  Raises UsageError for fewer than two."""
        if self.samples < 2:
            raise UsageError("one sample is not enough to fit and to measure on another: give more in --data, or --eval")
        held = [number for number in range(self.samples) if number % EVERY == EVERY - 1] or [self.samples - 1]
        rest = sorted(set(range(self.samples)) - set(held))
        return self.kept(rest), self.kept(held)

    def hashes(self) -> list[str]:
        """A digest of every sample."""
        return [digest(one) for number in range(self.samples) for one in self.take([number])]


class Order:
    """Which samples make the batch of a step: epochs of seeded permutations, the same whenever a run is taken up again."""

    def __init__(self, data: Data, size: int, seed: int) -> None:
        self.data, self.seed = data, seed
        self.size = 1 if data.whole else max(1, min(size, data.samples))
        self.per_epoch = -(-data.samples // self.size)
        self._epoch, self._order = -1, list[int]()

    def batch(self, step: int) -> Call:
        """The call of step 0, 1, ..."""
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            rng = np.random.default_rng((self.seed, epoch))
            self._epoch, self._order = epoch, rng.permutation(self.data.samples).tolist()
        return self.data.take(self._order[place * self.size : (place + 1) * self.size])[0]


class Held(NamedTuple):
    """Held-out samples with their labels (int64), None where there are none; `where` says where they come from."""

    data: Data
    labels: Tensor | None
    where: str


def read_held(given: str, module: Any) -> Held:
    """``xy.npz`` or ``file.py:function``: the inputs by name and `labels`, integers, one a sample (or one a position).

    The function returns the same as a dict.  Raises UsageError for anything else.
    """
    if given.endswith(".npz"):
        named, positional = read_data(Path(given))
    else:
        named, positional = _returned(given), list[Array]()
    labels = named.pop(LABELS, None)
    if labels is None:
        raise UsageError(f"--eval {given} has no array {LABELS!r}; it holds the inputs by name and {LABELS}, one a sample")
    if labels.dtype.kind not in "iu":
        raise UsageError(f"--eval {given}: {LABELS} are {labels.dtype}; expected class numbers as integers")
    data = Data(module_calls(module, [], (named, positional), []))
    if labels.ndim == 0 or len(labels) != data.samples:
        raise UsageError(f"--eval {given} has {labels.size} labels for {data.samples} samples; give one a sample")
    return Held(data, torch.from_numpy(labels.astype(np.int64)), given)


def _returned(reference: str) -> dict[str, Array]:
    function, path = resolve(reference, option="--eval")
    found = call(function, what=f"--eval {reference}", path=path) if callable(function) else function
    if not isinstance(found, Mapping):
        raise UsageError(f"--eval {reference} returned a {type(found).__name__}; expected a dict of the inputs and {LABELS!r}")
    items = cast("Mapping[Any, Any]", found)
    return {str(name): value.numpy() if isinstance(value, Tensor) else np.asarray(value) for name, value in items.items()}


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _samples(one: Call) -> int:
    tensors = _tensors(one)
    sizes = {tensor.shape[0] if tensor.ndim else 0 for tensor in tensors}
    if len(sizes) != 1 or 0 in sizes:
        found = ", ".join("x".join(map(str, tensor.shape)) or "a scalar" for tensor in tensors) or "no tensor"
        raise UsageError(
            f"the samples lie on axis 0 of every input, the same number in each; got {found}. "
            "For other layouts give batches: --inputs file.py:fn with a function that returns a list of calls"
        )
    return sizes.pop()


def digest(tree: Any) -> str:
    """A digest of all tensors in a pytree: types, shapes, values."""
    found = hashlib.sha256()
    for tensor in _tensors(tree):
        array = tensor.detach().cpu().contiguous()
        found.update(repr((array.dtype, tuple(array.shape))).encode())
        found.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
