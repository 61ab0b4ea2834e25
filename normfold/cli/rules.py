"""``normfold rules``."""

from __future__ import annotations

import shutil
import textwrap

import click


@click.command(short_help="List the rewrites.")
def rules() -> None:
    """List the rewrites in the order in which they run; --only and --skip take their names."""
    from normfold.rewrites import rewrites

    known = [(item.id, " ".join(item.summary.split())) for item in rewrites()]
    indent = max(len(name) for name, _ in known) + 2
    width = max(shutil.get_terminal_size((100, 24)).columns, indent + 40)
    for name, summary in known:
        first, *rest = textwrap.wrap(summary, width - indent) or [""]
        click.echo(f"{name:<{indent}}{first}")
        for line in rest:
            click.echo(" " * indent + line)
