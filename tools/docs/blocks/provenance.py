"""Where the numbers come from: what was measured on which machine, with what software, and how to measure it again."""

from __future__ import annotations

from kontext_fast.analysis.groups import by_machine
from kontext_fast.records.names import machine_name
from kontext_fast.records.schema import ResultFile
from kontext_fast.report.environment import environment_facts
from kontext_fast.report.text.markup import Markdown, bullets, code_span, joined, link, paragraphs
from kontext_fast.report.text.phrases import provenance
from tools.docs.doc_context import DocContext

_BUNDLED_SINCE = {
    "results/h200/centre.toml": "card",
    "results/h200/cold.toml": "card-cold",
    "results/h200/sizes.toml": "card-sizes",
    "results/h200/sweeps.toml": "card-sweeps",
}
SHOWN = ("packages.torch", "packages.diffusers", "packages.transformers", "packages.triton", "gpu.driver", "cuda")


def render(context: DocContext) -> Markdown:
    """One line per machine and checkpoint, then the software, the commands and the folders of the records."""
    published = context.published
    results = [result for _, result in (*published.verifications, *published.variants)]
    if published.speed is not None:
        results.insert(0, published.speed)
    if not results:
        return paragraphs(["There are no records yet."])
    measured = [provenance(groups) for groups in by_machine(group.group for group in context.groups)]
    measured += [_verification(result) for _, result in published.verifications]
    records = [record for result in results for record in result.records]
    facts = [fact for fact in environment_facts(records) if fact.name in SHOWN]
    commands = dict.fromkeys(command for result in results for command in result.command.split("; "))
    folders = [store.results.relative_to(published.folder.parent).as_posix() for store in published.stores]
    return paragraphs(
        [
            bullets(measured),
            "Software: " + ", ".join(f"{fact.name.rpartition('.')[2]} {fact.value}" for fact in facts) + ".",
            "Measured with, and to be measured again with:",
            bullets(code_span(_as_bundled(command)) for command in commands),
            Markdown("The records are in {}.").format(
                joined(link(folder, f"{context.to_root}{folder}") for folder in folders)
            ),
        ]
    )


def _as_bundled(command: str) -> str:
    """`command` with suites that have been bundled since under the names that they have now."""
    for file, suite in _BUNDLED_SINCE.items():
        command = command.replace(file, suite)
    return command


def _verification(result: ResultFile) -> str:
    assert result.verification is not None
    machines = {name for record in result.records if (name := machine_name(record.environment))}
    items = len({output.item for record in result.records for output in record.outputs})
    return f"verification on {' and '.join(sorted(machines)) or 'an unnamed machine'}, {items} items"
