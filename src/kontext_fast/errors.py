"""Every error that a user can cause or meet, and the exit code each one ends with.

    KontextError             4   our fault
    |- InvalidInput          2   bad input or usage; the message says what to write instead
    |  `- CheckpointUnavailable  2   missing, gated or unreachable weights
    |- Refused               3   this machine cannot do it; the message names the remedy
    |  `- OutOfMemory        3
    |- GateFailed            1   the work was done and the answer is no
    `- Cancelled           130   interrupted by the user

A message is one sentence that says what to do next. Front ends print it and nothing else.
"""

from __future__ import annotations


class KontextError(Exception):
    """Base of all errors raised on purpose by this package."""

    exit_code = 4


class InvalidInput(KontextError):
    """The caller asked for something that cannot be right, whatever the machine."""

    exit_code = 2


class CheckpointUnavailable(InvalidInput):
    """The weights are missing, gated, unreachable or not a FLUX.1-Kontext checkpoint."""


class Refused(KontextError):
    """The request is valid, but this machine lacks what it needs."""

    exit_code = 3


class OutOfMemory(Refused):
    """The device ran out of memory."""


class GateFailed(KontextError):
    """The work finished and a check that was asked for said no."""

    exit_code = 1


class Cancelled(KontextError):
    """The user interrupted the work; nothing half-written is left behind."""

    exit_code = 130
