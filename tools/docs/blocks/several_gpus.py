"""One edit on several GPUs against one of them, as `benchmarks/gpu/several_gpus_check.py --out .../several_gpus.json`
wrote it, what more GPUs would give by the same numbers, and what the time costs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from kontext_fast.cost.prices import card_of, load_prices
from kontext_fast.report.text.markup import Markdown, bullets, code_span, paragraphs, table
from tools.docs.doc_context import DocContext

STEPS = ("preset", "how", "a step", "faster", "an edit", "faster", "error of the latents")
PARTS = ("preset", "how", "products", "attention", "between", "exchange", "waiting", "a step")
CACHE_DIT: Final = "cache-dit"
_DIFFUSERS: Final = "ContextParallelConfig(ulysses_degree={})"
PREDICTED: Final = (4, 8)
"""GPUs that were not measured, and share the 24 heads evenly."""


@dataclass(frozen=True)
class Parts:
    """Milliseconds of a step on the GPU of a group that waits least."""

    products: float
    attention: float
    between: float
    exchange: float
    waiting: float

    @classmethod
    def of(cls, measured: Mapping[str, Any]) -> Parts:
        """What a collective lasts on the GPU that comes last is its transfer; all that is left of a step is waiting."""
        first = measured["kinds_ms"][0]
        exchange = min(kinds["exchange"] for kinds in measured["kinds_ms"])
        products, attention, between = (float(first[kind]) for kind in ("products", "attention", "between"))
        waiting = max(0.0, 1000 * measured["step_median_s"] - products - attention - between - exchange)
        return cls(products, attention, between, exchange, waiting)

    @property
    def computed(self) -> float:
        """What is shared between GPUs."""
        return self.products + self.attention + self.between

    @property
    def step(self) -> float:
        """All of it."""
        return self.computed + self.exchange + self.waiting


def predicted_ms(together: Parts, measured_gpus: int, gpus: int) -> float:
    """A step on `gpus` cards: computing is shared further, each of P cards sends (P - 1) / P^2 of all heads, and it
    waits as was measured."""
    sent = ((gpus - 1) / gpus**2) / ((measured_gpus - 1) / measured_gpus**2)
    return together.computed * measured_gpus / gpus + together.exchange * sent + together.waiting


def render(context: DocContext) -> Markdown:
    """Three tables for each file below the folder of results, newest first, each without what a newer one has."""
    reports: list[Markdown] = []
    newer: set[tuple[str, str]] = set()
    for link, report in reversed(list(context.stored("several_gpus.json"))):
        for preset, of_preset in report["presets"].items():
            together = of_preset["together"].items()
            of_preset["together"] = {mode: measured for mode, measured in together if (preset, mode) not in newer}
            newer |= {(preset, mode) for mode in of_preset["together"]}
        reports.append(_of_report(link, report))
    return paragraphs(reports or ["Not measured on several GPUs yet."])


def _of_report(link: Markdown, report: dict[str, Any]) -> Markdown:
    where = Markdown("{} x {}, one host, `{}`, {}x{}, {} evaluations, torch {}, NCCL {}: {}.").format(
        report["gpus"], report["gpu"], report["checkpoint"], report["size"], report["size"], report["steps"],
        report["torch"], report["nccl"], link,
    )  # fmt: skip
    refused = [
        Markdown("Not measured with {}, {}: {}").format(code_span(preset), _worded(transport), reason)
        for preset, of_preset in report["presets"].items()
        for transport, reason in of_preset.get("not_measured", {}).items()
    ]
    return paragraphs([*_together(report), *_true_cfg(report), *_peers(report), bullets([where, *refused])])


def _together(report: dict[str, Any]) -> Iterator[Markdown]:
    if any(of_preset["together"] for of_preset in report["presets"].values()):
        yield table(STEPS, _steps(report))
        yield table(PARTS, _parts(report))
        yield Markdown("More GPUs, **predicted, not measured**:")
        yield table(("preset", "how", *(f"{gpus} GPUs" for gpus in PREDICTED)), _predicted(report))
        yield from _money(report)


def _modes(report: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    for preset, of_preset in report["presets"].items():
        yield preset, "one GPU", of_preset["alone"], of_preset["alone"]
        for transport, measured in of_preset["together"].items():
            yield preset, _named(transport, report["gpus"]), measured, of_preset["alone"]


def _named(transport: str, gpus: int) -> str:
    return f"{gpus} GPUs, {_worded(transport)}"


def _worded(transport: str) -> str:
    """`peer_memory+graphs` in words."""
    return transport.replace("_", " ").replace("+", ", ")


def _steps(report: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    for preset, how, measured, alone in _modes(report):
        factors = [
            "" if measured is alone else f"{alone[key] / measured[key]:.2f}x"
            for key in ("step_median_s", "edit_median_s")
        ]
        error = measured.get("relative_error")
        exact = "none, bit-equal" if measured.get("bit_equal") else "" if error is None else f"{error:.4f}"
        yield (
            *(code_span(preset), how, f"{1000 * measured['step_median_s']:.1f} ms", factors[0]),
            *(f"{measured['edit_median_s']:.3f} s", factors[1], exact),
        )


def _parts(report: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    for preset, how, measured, _ in _modes(report):
        parts = Parts.of(measured)
        shown = (parts.products, parts.attention, parts.between, parts.exchange, parts.waiting, parts.step)
        yield code_span(preset), how, *(f"{part:.1f} ms" for part in shown)


def _predicted(report: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    for preset, of_preset in report["presets"].items():
        for transport, measured in of_preset["together"].items():
            parts = Parts.of(measured)
            steps = [predicted_ms(parts, report["gpus"], gpus) for gpus in PREDICTED]
            factors = [1000 * of_preset["alone"]["step_median_s"] / step for step in steps]
            told = [f"{step:.0f} ms, {factor:.1f}x" for step, factor in zip(steps, factors, strict=True)]
            yield code_span(preset), _worded(transport), *told


def _money(report: dict[str, Any]) -> Iterator[Markdown]:
    price = load_prices().typical(card_of(report["gpu"]), "on-demand")
    if price is None:
        return
    hourly = price.usd_per_gpu_hour
    for preset, of_preset in report["presets"].items():
        if not of_preset["together"]:
            continue
        alone = of_preset["alone"]["edit_median_s"]
        transport, best = min(of_preset["together"].items(), key=lambda item: item[1]["edit_median_s"])
        seconds, gpus = best["edit_median_s"], report["gpus"]
        before, after = alone * hourly / 3600, gpus * seconds * hourly / 3600
        line = Markdown(
            "{}: a thousand edits cost {} on one GPU and {} on {} by {}, at {} an hour for each ({}, {}); a second "
            "saved costs {}."
        )
        yield line.format(
            code_span(preset), f"${1000 * before:.2f}", f"${1000 * after:.2f}", gpus, _worded(transport),
            f"${hourly:.2f}", price.id, price.day, f"${(after - before) / (alone - seconds):.5f}",
        )  # fmt: skip


def _true_cfg(report: dict[str, Any]) -> Iterator[Markdown]:
    """Edits of two passes a step."""
    for preset, of_preset in report["presets"].items():
        if (measured := of_preset.get("true_cfg")) is None:
            continue
        alone, together = (measured[how]["edit_median_s"] for how in ("alone", "together"))
        bits = "the same bits" if measured["bit_equal"] else "other bits"
        yield Markdown("True CFG, {}: {} on one GPU, {} on {}, {}, with {}.").format(
            code_span(preset), f"{alone:.3f} s an edit", f"{together:.3f} s", report["gpus"],
            f"{alone / together:.2f}x", bits,
        )  # fmt: skip


def _peers(report: dict[str, Any]) -> Iterator[Markdown]:
    """Pipelines of other projects on one GPU and on all: diffusers' by kernel of attention, and cache-dit's."""
    peers = {name: by_gpus for name, by_gpus in report.get("peers", {}).items() if name != "not_measured"}
    rows = []
    for backend, by_gpus in peers.items():
        alone = by_gpus.get("1")
        for gpus, measured in by_gpus.items():
            name = f"ParallelismConfig(ulysses_size={gpus})" if backend == CACHE_DIT else _DIFFUSERS.format(gpus)
            how = "one GPU" if gpus == "1" else f"{gpus} GPUs, {name}"
            factors = [
                "" if gpus == "1" or alone is None else f"{alone[key] / measured[key]:.2f}x"
                for key in ("step_median_s", "edit_median_s")
            ]
            step, edit = f"{1000 * measured['step_median_s']:.1f} ms", f"{measured['edit_median_s']:.3f} s"
            rows.append((code_span(backend), how, step, factors[0], edit, factors[1]))
    if rows:
        yield Markdown("Other projects, not compiled and with nothing cached; diffusers by its backend of attention:")
        yield table(("peer", *STEPS[1:6]), rows)
