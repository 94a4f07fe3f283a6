"""What of this machine may stand in records, since those are published: no secret, no folder, no name of its user."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

NOT_RECORDED: Final = "[not recorded]"

_SETTINGS = r"[a-z_]{4,40}:(?:True|False|native|cudaMallocAsync|\d{1,6}(?:\.\d{1,3})?)"
_COUNT = re.compile(r"-?\d{1,6}")
_SWITCH = re.compile(r"(?i:\d|true|false|on|off|yes|no)")
_VERSIONS = re.compile(r"\d{1,3}(?:\.\d{1,4}){0,3}[a-z]?(?:\+PTX)?(?:[ ;,]\d{1,3}(?:\.\d{1,4}){0,3}[a-z]?(?:\+PTX)?)*")

FLAGS: Final[Mapping[str, re.Pattern[str]]] = {
    "OMP_NUM_THREADS": re.compile(r"\d{1,4}(?:,\d{1,4}){0,3}"),
    "OMP_DYNAMIC": _SWITCH,
    "OMP_PROC_BIND": re.compile(r"(?i:true|false|primary|master|close|spread)"),
    "OMP_PLACES": re.compile(r"(?i:threads|cores|sockets|ll_caches|numa_domains)"),
    "OMP_WAIT_POLICY": re.compile(r"(?i:active|passive)"),
    "MKL_NUM_THREADS": _COUNT,
    "MKL_DYNAMIC": _SWITCH,
    "CUDA_VISIBLE_DEVICES": re.compile(r"(?:-?\d{1,3}(?:,\d{1,3})*)?"),
    "CUDA_DEVICE_ORDER": re.compile(r"FASTEST_FIRST|PCI_BUS_ID"),
    "CUDA_DEVICE_MAX_CONNECTIONS": _COUNT,
    "CUDA_LAUNCH_BLOCKING": _SWITCH,
    "CUDA_MODULE_LOADING": re.compile(r"LAZY|EAGER|DEFAULT"),
    "CUDA_VERSION": _VERSIONS,
    "CUBLAS_WORKSPACE_CONFIG": re.compile(r"(?::\d{1,6}:\d{1,4})+"),
    "NVIDIA_TF32_OVERRIDE": _SWITCH,
    "PYTORCH_ALLOC_CONF": re.compile(rf"{_SETTINGS}(?:,{_SETTINGS})*"),
    "PYTORCH_CUDA_ALLOC_CONF": re.compile(rf"{_SETTINGS}(?:,{_SETTINGS})*"),
    "PYTORCH_NO_CUDA_MEMORY_CACHING": _SWITCH,
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": _SWITCH,
    "TORCH_COMPILE_DISABLE": _SWITCH,
    "TORCH_CUDA_ARCH_LIST": _VERSIONS,
    "TORCH_CUDNN_V8_API_DISABLED": _SWITCH,
    "TORCHDYNAMO_DISABLE": _SWITCH,
    "TORCHINDUCTOR_COMPILE_THREADS": _COUNT,
    "TORCHINDUCTOR_CUDAGRAPHS": _SWITCH,
    "TORCHINDUCTOR_FREEZING": _SWITCH,
    "TORCHINDUCTOR_MAX_AUTOTUNE": _SWITCH,
    "TRITON_INTERPRET": _SWITCH,
}
"""Variables of the environment that change speed or numbers, each with the values that it may have in a record."""

_SECRET_NAMES = re.compile(r"TOKEN|SECRET|PASSW|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|CREDENTIAL|COOKIE|_PWD$|_AUTH$")
_SHORTEST_SECRET = 6
_TOKENS = re.compile(
    r"\b(?:hf_|gh[opsur]_|github_pat_|glpat-|sk-|xox[abeoprs]-|AKIA|ASIA|AIza|eyJ)[A-Za-z0-9_.-]{11,}[A-Za-z0-9_-]"
    r"|(?<=Bearer )\S+"
)
_ASSIGNED = re.compile(r"((?i:token|secret|password|passwd|api_?key|access_?key)[\"']?\s*[=:]\s*[\"']?)[^\s\"'&,;]+")
_USER_OF_URL = re.compile(r"(?<=://)[^\s/@]+@")

_PART = r"[^/\n\"'`:,;()<>|]+"
_FOLDERS = (
    re.compile(r"file:/{2,}(?:[^/\s\"'<>]*/)*"),
    # A quoted path ends at its quote, so that its folders may have spaces and commas.
    re.compile(r"(?<=[\"'`])/(?:[^/\n\"'`]+/)+"),
    re.compile(rf"/(?:home|Users|root)/(?:{_PART}/)*"),
    re.compile(r"(?<![\w.:/])/(?:[^\s/\"'`:,;()<>|]+/)+"),
    re.compile(r"(?:\b[A-Za-z]:|\\)\\(?:[^\\/\n\"':,()<>|]+\\)+"),
)


def redact(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """`text` with absolute folders shortened to `.../`, and without access tokens and passwords: what is known by its
    look, and the values of all variables of `environment` that are named as secrets.
    """
    secrets = {
        value
        for name, value in environment.items()
        if _SECRET_NAMES.search(name.upper()) and len(value) >= _SHORTEST_SECRET
    }
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "[secret]")
    text = _ASSIGNED.sub(r"\1[secret]", _TOKENS.sub("[secret]", _USER_OF_URL.sub("[secret]@", text)))
    home = f"{Path.home()}".rstrip("/")
    if home:
        # Its name may have any letters, and whatever lies in it may as well.
        text = re.sub(rf"{re.escape(home)}/(?:{_PART}/)*", ".../", text).replace(home, "...")
    for folders in _FOLDERS:
        text = folders.sub(".../", text)
    return text


def recorded_flags(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables of `FLAGS` that are set; of a value of another look than theirs only that there is one."""
    return {
        name: environment[name] if shape.fullmatch(environment[name]) else NOT_RECORDED
        for name, shape in FLAGS.items()
        if name in environment
    }
