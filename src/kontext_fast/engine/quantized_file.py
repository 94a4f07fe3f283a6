"""Quantized weights on disk (safetensors), tied by a hash to the weights they were made from.

A file is used only with exactly those weights: the same checkpoint with the same LoRAs fused into it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from kontext_fast.engine.ops import Precision, Quantized
from kontext_fast.engine.weights import EngineWeights
from kontext_fast.errors import InvalidInput

_FORMATS: Mapping[str, str] = {"fp8": "kontext-fast fp8 3", "int8": "kontext-fast int8 2"}
_VALUES, _SCALE = ".values", ".scale"


def save(weights: EngineWeights, file: Path) -> None:
    """Write the quantized matrices of `weights` to `file`, whole or not at all. Raises InvalidInput."""
    from safetensors.torch import save_file

    if not weights.quantized:
        raise InvalidInput(
            "There is nothing quantized to save in this precision; accelerate with precision fp8 or int8 first."
        )
    tensors: dict[str, Tensor] = {}
    for name, matrix in weights.quantized.items():
        tensors |= {name + _VALUES: matrix.values, name + _SCALE: matrix.scale}
    metadata = {"format": _FORMATS[weights.precision], "source_sha256": weights.sources.content_hash()}
    try:
        with tempfile.TemporaryDirectory(dir=file.parent, prefix=f".{file.name}.") as folder:
            written = Path(folder) / file.name
            save_file(tensors, str(written), metadata=metadata)
            written.replace(file)
    except OSError as error:
        raise InvalidInput(f"{file} could not be written ({error.strerror}); choose another place.") from error


class QuantizedFile:
    """The matrices in a file; a `Quantizer`."""

    def __init__(self, file: Path, precision: Precision) -> None:
        """Raises InvalidInput if `file` is missing or was not written by `save` in that precision."""
        from safetensors import SafetensorError, safe_open

        self._file = file
        try:
            with safe_open(file, framework="pt") as opened:
                metadata = opened.metadata() or {}
        except (OSError, SafetensorError) as error:
            raise InvalidInput(f"{file} cannot be read as quantized weights; write it with save_quantized.") from error
        if metadata.get("format") != _FORMATS[precision]:
            raise InvalidInput(f"{file} holds no {precision} weights of this version; write it with save_quantized.")
        self._source = metadata["source_sha256"]
        self._tensors: dict[str, Tensor] = {}

    def __call__(self, name: str, parts: Sequence[Tensor]) -> Quantized:
        """The matrix `name`, on the device of `parts`. Raises InvalidInput if its shape is not theirs."""
        from safetensors.torch import load_file

        if not self._tensors:
            self._tensors = load_file(self._file, device=str(parts[0].device))
        # Popped, so that the file holds no reference to a matrix in use.
        values, scale = (self._tensors.pop(name + suffix, None) for suffix in (_VALUES, _SCALE))
        shape = (sum(len(part) for part in parts), parts[0].shape[1])
        if values is None or scale is None or values.shape != shape:
            raise self._mismatch()
        return Quantized(values, scale, parts[0].dtype)

    def require_made_from(self, weights: EngineWeights) -> None:
        """Raise InvalidInput unless the file was quantized from the source numbers of `weights`."""
        if weights.sources.content_hash() != self._source:
            raise self._mismatch()

    def _mismatch(self) -> InvalidInput:
        return InvalidInput(
            f"{self._file} was made from other weights than this pipeline has (another checkpoint or LoRA); "
            "leave quantized_file out, then write it again with save_quantized."
        )
