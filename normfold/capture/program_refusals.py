"""Why torch.export did not take a module, in one line: where it stopped, why, and what to do."""

from __future__ import annotations

import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from normfold.errors import InputRefused


def cloned(tree: Any) -> Any:
    """A pytree with its tensors copied: what is run twice must not see what the first run wrote."""
    return pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, tree)


def line(error: BaseException) -> str:
    """The first line of an error, shortened."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return text if len(text) <= 200 else text[:197] + "..."


def refusal(error: Exception, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> InputRefused:
    """One line: where torch.export stopped, why, and what to do."""
    name, text = type(module).__name__, str(error)
    frames = traceback.extract_tb(error.__traceback__)
    here = Path(__file__).resolve().parent
    own = [frame for frame in frames if not _of_torch(frame.filename) and Path(frame.filename).resolve().parent != here]
    where = f" at {Path(own[-1].filename).name}:{own[-1].lineno} ({own[-1].line})" if own else ""
    if _packs(error):
        return InputRefused(
            f"{name} cannot be captured{where}: torch.export does not take packed sequences; "
            "run the recurrent layer on the padded tensor (and mask the result)"
        )
    if "data-dependent" in text or "GuardOnDataDependentSymNode" in type(error).__name__:
        return InputRefused(
            f"{name} cannot be captured{where}: the Python code branches or sizes something on the values of a tensor; "
            "use torch.where or torch.cond, or take that step out of the module"
        )
    if "specialized it to be a constant (1)" in text:
        return InputRefused(
            f"{name} cannot be captured with these dynamic sizes: an example size of 1 was taken as fixed; "
            "pass example inputs whose dynamic sizes are 2 or more"
        )
    if "Constraints violated" in text or "ConstraintViolation" in type(error).__name__ or "specialized" in text:
        return InputRefused(
            f"{name} cannot be captured with these dynamic sizes: {_constraint(text)}; "
            "make that size static (a loop over time steps always is) or give the range that the message asks for"
        )
    own_error: Exception | None = None
    with suppress(Exception):
        try:
            module(*cloned(args), **cloned(kwargs))
        except Exception as raised:
            own_error = raised
    if own_error is not None:
        return InputRefused(
            f"{name} does not run on the given inputs: {type(own_error).__name__}: {line(own_error)}; "
            "check the number, order, shapes and types of the inputs"
        )
    return InputRefused(
        f"{name} cannot be captured{where}: torch.export says {type(error).__name__}: {line(error)}; "
        "simplify that part, or export it yourself with torch.export.export and pass the program"
    )


def _packs(error: BaseException) -> bool:
    """True when a packed sequence was on the way to the error."""
    trace = error.__traceback__
    while trace is not None:
        if any(isinstance(item, nn.utils.rnn.PackedSequence) for item in trace.tb_frame.f_locals.values()):
            return True
        trace = trace.tb_next
    return False


def _constraint(text: str) -> str:
    """The line of a constraint violation that says which size and why."""
    lines = [line.strip(" -") for line in text.splitlines() if line.strip(" -")]
    telling = [
        line for line in lines if "specialized it to be a constant" in line or "must be" in line or "Not all values" in line
    ]
    chosen = telling[0] if telling else lines[0]
    return chosen.split(". If you")[0].split(". For more")[0]


def _of_torch(filename: str) -> bool:
    root = str(Path(torch.__file__).parent)
    return filename.startswith((root, "<")) or "/contextlib.py" in filename
