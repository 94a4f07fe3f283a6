"""The raw samples as a table for spreadsheets: complete, and without averages.

One row per sample, warm-ups included and marked. A run without samples (failed, refused) is one row with its status
and reason and empty measurement cells.
"""

from __future__ import annotations

import csv
import io
from typing import Any

from kontext_fast.records.names import machine_name
from kontext_fast.records.schema import Measurement, Record, ResultFile, Sample

STAGES = ("text_encode", "vae_encode", "denoise", "vae_decode")

RUN_COLUMNS = ("run_id", "created_at", "round", "order", "preset", "status", "reason", "labels")
MACHINE_COLUMNS = ("machine", "checkpoint", "dtype", "load_s", "apply_s")
WORKLOAD_COLUMNS = (
    "mode",
    "width_px",
    "height_px",
    "reference_width_px",
    "reference_height_px",
    "text_tokens",
    "image_tokens",
    "reference_tokens",
    "steps",
    "guidance",
    "true_cfg",
    "batch",
    "first_call_s",
)
SAMPLE_COLUMNS = (
    "item",
    "seed",
    "warmup",
    "wall_s",
    *(f"{stage}_s" for stage in STAGES),
    "steps_s",
    "step_kinds",
    "computed_steps",
    "allocated_peak_bytes",
    "reserved_peak_bytes",
    "device_process_peak_bytes",
    "host_rss_peak_bytes",
    "images",
)
COLUMNS = RUN_COLUMNS + MACHINE_COLUMNS + WORKLOAD_COLUMNS + SAMPLE_COLUMNS


def samples_csv(result: ResultFile) -> str:
    """The table as CSV text, header first. Lists inside a cell are separated by spaces, labels by `; `."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=COLUMNS, lineterminator="\n")
    writer.writeheader()
    for record in result.records:
        writer.writerows(_rows(record))
    return text.getvalue()


def _rows(record: Record) -> list[dict[str, Any]]:
    run = _run_cells(record)
    rows = []
    for measurement in record.measurements:
        workload = _workload_cells(measurement)
        rows += [run | workload | _sample_cells(sample) for sample in measurement.samples]
    return rows or [run]


def _run_cells(record: Record) -> dict[str, Any]:
    cells = {name: getattr(record, name) for name in RUN_COLUMNS}
    cells["labels"] = "; ".join(record.labels)
    cells["machine"] = machine_name(record.environment)
    cells["checkpoint"] = record.checkpoint and record.checkpoint.name
    cells["dtype"] = record.checkpoint and record.checkpoint.dtype
    cells["load_s"] = record.load_s
    cells["apply_s"] = record.apply_s
    return cells


def _workload_cells(measurement: Measurement) -> dict[str, Any]:
    workload = measurement.workload
    pixels = {
        f"{name}_px": getattr(workload, name) for name in ("width", "height", "reference_width", "reference_height")
    }
    others = {name: getattr(workload, name) for name in WORKLOAD_COLUMNS if hasattr(workload, name)}
    return pixels | others | {"first_call_s": measurement.first_call_s}


def _sample_cells(sample: Sample) -> dict[str, Any]:
    return {
        "item": sample.item,
        "seed": sample.seed,
        "warmup": sample.warmup,
        "wall_s": sample.wall_s,
        **{f"{stage}_s": sample.stages_s.get(stage) for stage in STAGES},
        "steps_s": " ".join(map(repr, sample.steps_s)),
        "step_kinds": " ".join(sample.step_kinds),
        "computed_steps": sum(kind != "skipped" for kind in sample.step_kinds),
        **sample.memory.model_dump(),
        "images": " ".join(sample.images),
    }
