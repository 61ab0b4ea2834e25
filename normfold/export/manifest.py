"""The manifest beside a result: what it was made from, with what, and what was done and proved."""

from __future__ import annotations

import json
from pathlib import Path

from normfold.export.atomic import write_files
from normfold.record import Record

VOLATILE = ("seconds", "timings")  # measurements differ from run to run; the manifest of the same input and options does not


def manifest_path(output: Path) -> Path:
    """``net.onnx`` -> ``net.onnx.json``."""
    return output.with_name(f"{output.name}.json")


def write_manifest(output: Path, record: Record) -> Path:
    """Write the manifest of `output` atomically: hashes of input and outputs, versions, layers, rewrites, comparisons.

    Same input, same options, same versions: same bytes, so measured times are left out.
    """
    content = {key: value for key, value in record.as_dict().items() if key not in VOLATILE}
    content["outputs"] = {Path(path).name: digest for path, digest in record.outputs.items()}
    content["source"] = Path(record.source).name if record.source else ""
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    path = manifest_path(output)
    write_files({path: lambda file: file.write(text.encode())}, force=True)
    return path
