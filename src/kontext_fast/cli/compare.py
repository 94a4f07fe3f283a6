"""`kontext compare`: two benchmarks of the same thing, before and after a change.

Exit codes: 0 nothing became slower; 1 a regression; 2 records that cannot be compared.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kontext_fast.cli.command_class import Group
from kontext_fast.cli.options import Json
from kontext_fast.cli.output import print_json
from kontext_fast.errors import GateFailed, InvalidInput

GROUP = Group.MEASURE


def command(
    a: Annotated[Path, typer.Argument(metavar="A", help="Records from before: a folder that a bench wrote.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Records from after.")],
    threshold: Annotated[
        float, typer.Option(metavar="PCT", help="Smallest slow-down, in percent, that is a regression.")
    ] = 2.0,
    json: Json = False,
) -> None:
    """Find what became slower from one benchmark to another.

    Prints a Markdown table for a pull request.
    """
    from kontext_fast.analysis.comparison import compare
    from kontext_fast.records.store import ResultStore
    from kontext_fast.report.output.comparison_table import as_data, markdown

    if not 0 <= threshold < 100:
        raise InvalidInput(f"The threshold is {threshold:g} %; give a number from 0 to below 100.")
    before, after = (ResultStore.find(path).load() for path in (a, b))
    comparison = compare(before, after, threshold / 100)
    print(markdown(comparison, before, after, threshold / 100))
    if json:
        print_json(as_data(comparison))
    if comparison.regressions:
        names = ", ".join(dict.fromkeys(change.preset for change in comparison.regressions))
        raise GateFailed(f"Slower or failing in B: {names}; see the table.")
