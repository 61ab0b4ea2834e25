"""What `normfold verify` prints: one screen, however different the two models are."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from normfold.pipeline.verifying import Side, Verification
from normfold.record import Comparison
from normfold.report.words import GATES, plural, seconds_text, share, shown
from normfold.verify.gates import FACTOR

_STYLES = {"same": "green", "different": "red", "cannot tell": "yellow"}
_SENTENCES = {
    "same": "SAME: the two compute one function, as far as the original's own rounding noise lets tell",
    "different": "DIFFERENT: the two do not compute one function",
    "cannot tell": "CANNOT TELL: nothing was found to differ, but not everything could be judged",
}
CONTRACT_LINES = 5
NOTES = 4


def render(found: Verification, console: Console, *, every: bool = False) -> None:
    """Print a verification.  every: all notes and broken contracts, however many.  Names of the models are escaped."""
    for letter, side in (("A", found.a), ("B", found.b)):
        _print(console, Text.assemble((f"{letter}  ", "bold"), shown(_named(side))))
    console.print()
    _print(console, Text(_SENTENCES[found.verdict], style=f"bold {_STYLES[found.verdict]}"))
    _print(
        console,
        f"level {found.plan.level}, seed {found.plan.seed}, {plural(len(found.compared.judgement.ran), 'kind')} of input, "
        f"noise of {found.compared.grain}",
        2,
    )
    _gates(found.compared.judgement.comparisons, console)
    _contract(found.compared.judgement.comparisons, console, every)
    _place(found, console)
    _likeness(found, console)
    notes = found.notes if every else found.notes[:NOTES]
    if notes:
        console.print()
    for note in notes:
        _print(console, note if every or len(note) <= 300 else f"{note[:300]}...", 2)
    if len(found.notes) > len(notes):
        _print(console, f"and {plural(len(found.notes) - len(notes), 'note')} more (-v shows all)", 2)
    console.print()
    _print(console, Text(seconds_text(found.seconds), style="dim"), 2)


def _named(side: Side) -> str:
    return f"{side.path or side.kind}" + (f"  sha256 {side.sha256[:16]}" if side.sha256 else "")


def _gates(comparisons: Sequence[Comparison], console: Console) -> None:
    gates: dict[str, list[Comparison]] = {}
    for item in comparisons:
        gates.setdefault(item.gate, []).append(item)
    if not gates:
        return
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1))
    table.add_column("gate", overflow="fold")
    table.add_column("compared", justify="right", no_wrap=True)
    table.add_column("failed", justify="right", no_wrap=True)
    table.add_column("k needed", justify="right", no_wrap=True)
    table.add_column("worst", overflow="fold")
    for gate, items in gates.items():
        failed = sum(not item.passed for item in items)
        worst = max(items, key=share)
        wanted = "" if gate == "contract" else _needed(worst)
        name = f"{gate} ({GATES[gate]})" if gate in GATES else gate
        row = [Text(name), Text(f"{len(items)}"), Text(str(failed), style="red" if failed else ""), Text(wanted), _worst(worst)]
        table.add_row(*row)
    console.print()
    console.print(Padding(table, (0, 0, 0, 2), expand=False))
    _print(console, Text(f"k needed: the multiple of the noise that would pass; {FACTOR:g} is allowed", style="dim"), 2)


def _needed(worst: Comparison) -> str:
    ratio = share(worst)
    return "none" if ratio == float("inf") else f"{FACTOR * ratio:.3g}"


def _worst(item: Comparison) -> Text:
    if item.gate == "contract":
        return Text("" if item.passed else shown(item.subject))
    where = f", {item.where}" if item.where else ""
    family = f" on {item.family} inputs" if item.family else ""
    return Text(shown(f"{item.subject}{where}{family}: error {item.error:.3g}, {item.allowed:.3g} allowed"))


def _contract(comparisons: Sequence[Comparison], console: Console, every: bool) -> None:
    broken = [item for item in comparisons if item.gate == "contract" and not item.passed]
    if not broken:
        return
    console.print()
    _print(console, Text("What callers see differs", style="bold"))
    for item in broken if every else broken[:CONTRACT_LINES]:
        text = f"{item.subject}: {item.where}"
        _print(console, text if every or len(text) <= 200 else f"{text[:200]}...", 2)
    if not every and len(broken) > CONTRACT_LINES:
        _print(console, f"and {len(broken) - CONTRACT_LINES} more (-v shows all)", 2)


def _place(found: Verification, console: Console) -> None:
    compared, parting = found.compared, found.compared.parting
    console.print()
    if parting is not None:
        where = f", {parting.where}" if parting.where else ""
        _print(console, Text("Where it begins", style="bold"))
        _print(
            console,
            f"{parting.value}, made by {parting.op} ({parting.node}){where}, on {parting.family} inputs: error "
            f"{parting.error:.3g}, {parting.allowed:.3g} allowed",
            2,
        )
        if found.responsible:
            _print(console, f"the rewrite there: {found.responsible}", 2)
    if compared.common:
        text = f"{compared.parted} of {plural(compared.common, 'value')} that both hold by name differ"
        if compared.parted and found.verdict != "different":
            text += "; the outputs do not: those values may be stored with another scale or shift"
        _print(console, text, 2)
    elif found.verdict == "different" and compared.judgement.ran:
        _print(console, "no value inside has the same name in both: where the difference begins cannot be told", 2)


def _likeness(found: Verification, console: Console) -> None:
    for name, figures in list(found.compared.likeness.items())[:3]:
        parts = [f"signal to noise {figures['sqnr_db']:.1f} dB", f"largest difference {figures['largest']:.3g}"]
        parts += [
            f"{key.replace('top', 'top-')} agrees in {100 * figures[key]:.0f} %" for key in ("top1", "top5") if key in figures
        ]
        _print(console, Text(shown(f"{name} (shown, not judged): {', '.join(parts)}"), style="dim"), 2)


def _print(console: Console, text: Text | str, indent: int = 0) -> None:
    body = text if isinstance(text, Text) else Text(shown(text))
    console.print(Padding(body, (0, 0, 0, indent), expand=False))
