"""Checkpoints from the Hugging Face Hub: downloaded once into its cache, then a diffusers folder like any other.

Where no checkpoint is named, it is FLUX.1-Kontext-dev if there is a GPU.

The package huggingface_hub reads HF_TOKEN itself, so this module never handles the token.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from kontext_fast.errors import CheckpointUnavailable, Refused
from kontext_fast.pipeline.folder import INDEX, check_folder, load_folder, weights_bytes
from kontext_fast.pipeline.load import FULL_SIZE_BYTES, KONTEXT_DEV, CheckpointSource, LoadedCheckpoint, Target, kind_of

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

_COMPONENT_FILES = ("*/*.json", "*/*.safetensors", "*/*.txt", "*/*.model")
"""Only of subfolders: repositories also hold a second copy of the whole transformer at the top."""

_REACH_S = 10.0

STEPS_TO_WEIGHTS = (
    f"(1) accept the licence at https://huggingface.co/{KONTEXT_DEV}, (2) run hf auth login with a token of that "
    "account, (3) run this again; or add --checkpoint tiny to try the small bundled model."
)
"""What brings the weights, as the end of a sentence."""


def is_hub_id(checkpoint: str) -> bool:
    """Whether `checkpoint` has the form "organization/name"."""
    return _HUB_ID.fullmatch(checkpoint) is not None


def _load(checkpoint: str, target: Target) -> LoadedCheckpoint:
    return load_folder(download(checkpoint), target, kind="hub", name=checkpoint, shown=checkpoint)


def _is_full_size(checkpoint: str) -> bool:
    folder = cached_folder(checkpoint)
    return checkpoint == KONTEXT_DEV or (folder is not None and weights_bytes(folder) >= FULL_SIZE_BYTES)


HUB = CheckpointSource(
    name=f"a Hub id such as {KONTEXT_DEV}",
    kind="hub",
    precedence=30,
    matches=is_hub_id,
    full_size=_is_full_size,
    load=_load,
)


def cached_folder(hub_id: str) -> Path | None:
    """Where the local cache has the index of this checkpoint, which is downloaded first; uses no network."""
    from huggingface_hub import try_to_load_from_cache

    index = try_to_load_from_cache(hub_id, INDEX)
    return Path(index).parent if isinstance(index, str) else None


def default_checkpoint(device: str | None) -> tuple[str, str]:
    """The checkpoint to use where none is named, and the reason for it. Imports torch.

    On a GPU nothing takes the place of FLUX.1-Kontext-dev: raises CheckpointUnavailable where it is neither in the
    local cache nor to be had, with what is to be done.
    """
    import torch

    if device == "cpu":
        return "tiny", "the device is the CPU"
    if not torch.cuda.is_available():
        return "tiny", "there is no GPU"
    return KONTEXT_DEV, f"there is a GPU and {require_kontext_dev()}"


def require_kontext_dev() -> str:
    """Why FLUX.1-Kontext-dev can be had here. Raises CheckpointUnavailable, with what is to be done, where it cannot.

    Imports no torch.
    """
    from huggingface_hub import get_token

    if cached_folder(KONTEXT_DEV) is not None:
        return "the local cache has it"
    if get_token() is None:
        raise CheckpointUnavailable(f"{KONTEXT_DEV} is not here yet: {STEPS_TO_WEIGHTS}")
    return "a token"


def checkpoint_for_pictures(device: str | None) -> str:
    """The checkpoint that edits a user's own pictures where they name none: FLUX.1-Kontext-dev on a GPU.

    Imports torch. Raises CheckpointUnavailable as `default_checkpoint`, and Refused without a GPU, since `tiny` knows
    drawings of shapes alone and would ruin a picture.
    """
    checkpoint, reason = default_checkpoint(device)
    if kind_of(checkpoint).has_judge:
        raise Refused(
            f"No checkpoint was named and {reason}, so only tiny is left, which knows drawings of shapes and would "
            "ruin a picture: run this on a machine with a GPU, try kontext demo here, or insist with --checkpoint tiny."
        )
    return checkpoint


def download(hub_id: str) -> Path:
    """The local folder of a checkpoint, after downloading what the cache lacks. Raises CheckpointUnavailable."""
    import httpx
    from huggingface_hub import HfApi, get_token, hf_hub_download, snapshot_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionResolutionError,
    )

    try:
        # Whoever has the weights needs no token to use them; the Hub would ask for one to look for newer ones.
        have = get_token() is None and cached_folder(hub_id) is not None
        # The index is small, so it reveals what is wrong before gigabytes are downloaded.
        offline = have or not _is_reachable(HfApi(), hub_id)
        index = Path(hf_hub_download(hub_id, INDEX, local_files_only=offline))
        check_folder(index.parent, hub_id, weights=False)
        patterns = [INDEX, *_COMPONENT_FILES]
        folder = Path(snapshot_download(hub_id, allow_patterns=patterns, local_files_only=offline))
    except GatedRepoError as error:
        raise CheckpointUnavailable(
            f"{hub_id} is gated; accept its licence at https://huggingface.co/{hub_id} and set HF_TOKEN to a token of "
            "that account, or use tiny."
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise CheckpointUnavailable(
            f"{hub_id} is neither a local folder nor a checkpoint on the Hub that this account may see; "
            "check the name and HF_TOKEN, or use tiny."
        ) from error
    except (LocalEntryNotFoundError, RevisionResolutionError, httpx.TransportError) as error:
        raise CheckpointUnavailable(
            f"{hub_id} is not in the local cache and the Hub cannot be reached; connect to the network, or use tiny."
        ) from error
    except EntryNotFoundError as error:
        raise CheckpointUnavailable(
            f"{hub_id} is not a diffusers pipeline, since it has no {INDEX}; use a FLUX.1-Kontext checkpoint or tiny."
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise CheckpointUnavailable(
            f"The Hub refused {hub_id} with status {status}; check HF_TOKEN and try again later, or use tiny."
        ) from error
    except OSError as error:
        raise CheckpointUnavailable(
            f"{hub_id} could not be downloaded ({error.strerror or type(error).__name__}); "
            "check the network and the free space of the disk, or use tiny."
        ) from error
    check_folder(folder, hub_id)
    return folder


def _is_reachable(api: Any, hub_id: str) -> bool:
    """One request, since downloads retry for half a minute before they fail. Raises the Hub's errors."""
    import httpx
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        api.model_info(hub_id, timeout=_REACH_S)
    except (OfflineModeIsEnabled, httpx.TransportError):
        return False
    return True
