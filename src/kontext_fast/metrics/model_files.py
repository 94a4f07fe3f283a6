"""The weights of a learned metric, in the user's folder or in the Hub's cache; they are never downloaded."""

from __future__ import annotations

from pathlib import Path

from kontext_fast.metrics.base import NotMeasured, Setting


def model_folder(setting: Setting, subfolder: str, hub_id: str) -> tuple[str, Path]:
    """Name and folder of a model. Raises NotMeasured, saying how to get the weights."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    remedy = f"download them with `hf download {hub_id}`, or give a folder with a subfolder {subfolder}"
    if setting.weights is not None:
        folder = setting.weights / subfolder
        if not (folder / "config.json").is_file():
            raise NotMeasured(f"there are no weights in {subfolder} of the given folder; {remedy}")
        return subfolder, folder
    try:
        return hub_id, Path(snapshot_download(hub_id, local_files_only=True))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError):
        raise NotMeasured(f"the weights of {hub_id} are not on this machine; {remedy}") from None


def weights_hash(folder: Path) -> str:
    """One hash of the safetensors in `folder`. Raises NotMeasured where there are none."""
    from kontext_fast.pipeline.folder import weight_files, weights_sha256

    files = weight_files(folder)
    if not files:
        raise NotMeasured(f"{folder.name} has no .safetensors file; convert its weights")
    return weights_sha256(files)
