"""Every error that a user can cause or meet, and its exit code.

    KontextError             4   our fault
    |- InvalidInput          2   bad input or usage; the message says what to write instead
    |  `- CheckpointUnavailable  2   missing, gated or unreachable weights
    |- Refused               3   this machine cannot do it; the message names the remedy
    |  `- OutOfMemory        3
    |- GateFailed            1   the command completed, but a requested check failed
    `- Cancelled           130   interrupted by the user

A message is one sentence that says what to do next. Front ends print it and nothing else.
"""

from __future__ import annotations


class KontextError(Exception):
    """Base of all errors raised on purpose by this package."""

    exit_code = 4


class InvalidInput(KontextError):
    """The request is wrong on any machine."""

    exit_code = 2


class CheckpointUnavailable(InvalidInput):
    """The weights are missing, gated, unreachable or not a FLUX.1-Kontext checkpoint."""


class Refused(KontextError):
    """The request is valid, but this machine lacks what it needs."""

    exit_code = 3


class OutOfMemory(Refused):
    """The device ran out of memory."""


class GateFailed(KontextError):
    """The command completed, but a requested check failed."""

    exit_code = 1


class Cancelled(KontextError):
    """The user interrupted the work; nothing half-written is left behind."""

    exit_code = 130


class Caution(UserWarning):
    """Not an error: what must be kept in mind of a result that was made all the same. Front ends show it themselves."""


def words_of_exit(code: int) -> str:
    """How a process ended, of its exit code as `subprocess` and `multiprocessing` give it: "was ended by signal 9"."""
    return f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
