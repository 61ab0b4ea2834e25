"""``normfold optimize MODEL``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from normfold.cli.common import State, load_model, loading_options, output_options, reported, target_option


@click.command(short_help="Remove the norms of a model that can exactly go.")
@click.argument("source", metavar="MODEL")
@click.option(
    "-o", "--output", "outputs", type=click.Path(path_type=Path), multiple=True, help="File to write (.onnx or .pt2); repeatable."
)
@click.option(
    "--objective",
    type=click.Choice(["latency", "norms"]),
    default="latency",
    show_default=True,
    help="Never slower, or fewest norms.",
)
@target_option
@loading_options
@click.option("--only", metavar="RULE", multiple=True, help="Use only this rewrite; repeatable.")
@click.option("--skip", metavar="RULE", multiple=True, help="Leave this rewrite out; repeatable.")
@click.option("--keep", metavar="PATTERN", multiple=True, help="Keep norms whose module path or node name matches; repeatable.")
@click.option(
    "--clone-budget",
    metavar="SIZE",
    default="0",
    show_default=True,
    help="How much copies of shared weights may add so that more norms go: 2MB, or 5% of the model.",
)
@click.option("--keep-overridable", is_flag=True, help="Keep ONNX initializers that are graph inputs overridable.")
@click.option("--opset", type=click.IntRange(min=1), help="Opset of an ONNX result; the input's own or the exporter's default.")
@click.option("--no-verify", is_flag=True, help="Write the result without judging it.")
@click.option("--no-simplify", is_flag=True, help="Leave the last tidy step (onnxsim) out.")
@click.option("--no-timing", is_flag=True, help="Do not measure latency.")
@click.option(
    "--seconds", type=click.FloatRange(min=0, min_open=True), default=5.0, show_default=True, help="How long to measure."
)
@click.option("--force", is_flag=True, help="Replace existing outputs.")
@click.option("--in-place", is_flag=True, help="Write over MODEL.")
@click.option("--dry-run", is_flag=True, help="Do everything but write.")
@output_options
def optimize(source: str, state: State, json: bool, outputs: tuple[Path, ...], **asked: Any) -> None:
    """Remove what can exactly go from MODEL, check it in float64, write it, and say what became of every norm.

    MODEL is an .onnx, a .pt2 (torch.export), or a checkpoint together with --model. A file MODEL's-name.toml beside it may hold
    the options for loading. Without -o the result is MODEL's-name.normfold.onnx for ONNX, .normfold.pt2 for torch.
    """
    from normfold.load import sniff
    from normfold.pipeline.options import Options, check_outputs, default_output
    from normfold.record import Record

    record = Record()
    with reported(record, state, json=json):
        path = Path(source)
        kind = {"onnx": "onnx", "pt2": "program"}.get(sniff(path), "module")
        outputs = _outputs(path, outputs, in_place=asked["in_place"], default=default_output(path, kind))
        if not asked["dry_run"]:
            check_outputs(outputs, kind=kind, source=path, force=asked["force"], in_place=asked["in_place"])
        options = Options(
            objective=asked["objective"],
            target=asked["target"],
            verify=not asked["no_verify"],
            simplify=not asked["no_simplify"],
            timing=not asked["no_timing"],
            only=asked["only"],
            skip=asked["skip"],
            keep=asked["keep"],
            clone_budget=asked["clone_budget"],
            keep_overridable=asked["keep_overridable"],
            opset=asked["opset"],
            outputs=outputs,
            force=asked["force"],
            in_place=asked["in_place"],
            dry_run=asked["dry_run"],
            seconds=asked["seconds"],
        )
        loaded = load_model(source, record, asked)
        from normfold.pipeline import run

        run(loaded, options, record)


def _outputs(source: Path, outputs: tuple[Path, ...], *, in_place: bool, default: Path) -> tuple[Path, ...]:
    from normfold.errors import UsageError

    if in_place and outputs:
        raise UsageError("--in-place writes over MODEL and -o elsewhere; give one of them")
    return (source,) if in_place else outputs or (default,)
