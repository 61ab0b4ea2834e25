"""The data of the models here: scikit-learn's handwritten digits, split once and for all.

Source: scikit-learn `load_digits`, 1797 images of 8x8 pixels in 0..16 (a part of the UCI set "Optical Recognition of
Handwritten Digits").  Every fifth image is held out, by its place in the set: no generator, so no version of one, decides.
Of the others the recurrent networks see three in four with their labels; the fourth is left for distillation, without labels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt


class Split(NamedTuple):
    """Images float32 [n, 1, 8, 8] in 0..1 and labels int64 [n]."""

    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]


def split() -> tuple[Split, Split]:
    """(training part of 1438 images, held-out part of 359 images)."""
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    images = (data.images / 16.0).astype(np.float32)[:, None]
    labels = data.target.astype(np.int64)
    held_out = np.arange(len(labels)) % 5 == 4
    return Split(images[~held_out], labels[~held_out]), Split(images[held_out], labels[held_out])


class Parts(NamedTuple):
    """Three parts that share no image: 1079 to train on, 359 without labels (float32 [359, 1, 8, 8]), 359 held out."""

    labelled: Split
    unlabelled: npt.NDArray[np.float32]
    held_out: Split


def parts() -> Parts:
    """`split`, with every fourth image of its training part set apart for distillation: no recipe uses the labels of those."""
    training, held_out = split()
    apart = np.arange(len(training.labels)) % 4 == 3
    return Parts(Split(training.images[~apart], training.labels[~apart]), training.images[apart], held_out)


def unlabelled() -> dict[str, Any]:
    """The images without labels as the input of every network here: for ``--inputs models/digits.py:unlabelled``."""
    import torch

    return {"image": torch.from_numpy(parts().unlabelled)}


def held_out() -> dict[str, Any]:
    """The held-out images with their labels: for ``--eval models/digits.py:held_out``."""
    part = parts().held_out
    return {"image": part.images, "labels": part.labels}
