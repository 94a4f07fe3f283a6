"""A server's verdicts: of these weights, and of plans that make the same images as the one that runs here."""

from __future__ import annotations

from kontext_fast.optimizations.base import Optimization
from kontext_fast.optimizations.presets import Plan
from kontext_fast.optimizations.techniques.device_pixels import DevicePixels
from kontext_fast.optimizations.techniques.engine import Engine
from kontext_fast.optimizations.techniques.fused_vae import FusedVae
from kontext_fast.records.schema import AppliedOptimization
from kontext_fast.report.verification import VerdictSummary
from kontext_fast.server.verdicts import _same, _Verified
from tests.records.builder import RANDOM, TINY

SUMMARY = VerdictSummary.__new__(VerdictSummary)


def applied(*optimizations: Optimization) -> tuple[AppliedOptimization, ...]:
    return Plan("mine", optimizations).applied


def test_verdict_holds_where_exact_techniques_alone_differ() -> None:
    verdict = _Verified(SUMMARY, TINY, applied(Engine(), FusedVae()))
    for plan, same in (
        ((Engine(), FusedVae()), True),
        ((Engine(), FusedVae(), DevicePixels()), True),
        ((Engine(),), False),
        ((Engine(precision="fp8"), FusedVae(), DevicePixels()), False),
    ):
        assert _same(verdict, TINY, applied(*plan)) is same
    assert not _same(verdict, RANDOM, applied(Engine(), FusedVae()))
