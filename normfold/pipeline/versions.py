"""The releases that a result was made with."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("normfold", "torch", "onnx", "onnx-ir", "onnxruntime", "onnxsim", "numpy")


def versions() -> dict[str, str]:
    """Package -> its installed version, "unknown" for one that is not installed."""
    found: dict[str, str] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # a checkout that was not installed
            found[package] = "unknown"
    return found
