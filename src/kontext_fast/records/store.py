"""A result folder on disk: the records, their images and their raw samples, each written whole or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from kontext_fast.errors import InvalidInput
from kontext_fast.records.samples_csv import samples_csv
from kontext_fast.records.schema import SCHEMA_VERSION, Record, ResultFile, Score
from kontext_fast.validation import dotted, first_mistake

if TYPE_CHECKING:
    from PIL.Image import Image

RECORDS_NAME = "benchmark_results.json"
FOLDERS = ("results/images", "visualizations/performance", "visualizations/quality", "visualizations/cost", "reports")
STORED_MODES = ("RGB", "RGBA", "L")
HASH = re.compile(r"[0-9a-f]{64}")


class ResultStore:
    """Reads and writes one result folder. One writer at a time; images may be added by several processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records_file = folder / "results" / RECORDS_NAME

    @classmethod
    def find(cls, records: Path) -> ResultStore:
        """Open what a user named: a result folder, its `results` subfolder, or a JSON file of records in either.

        Raises InvalidInput where there is nothing to read; the content is checked by `load`.
        """
        if records.is_file():
            records_file = records
        elif records.is_dir():
            candidates = (records / "results" / RECORDS_NAME, records / RECORDS_NAME)
            existing = [path for path in candidates if path.is_file()]
            if not existing:
                raise InvalidInput(f"There are no records in {records}: name a folder that `kontext bench` wrote.")
            records_file = existing[0]
        else:
            raise InvalidInput(f"{records} does not exist: name a folder that `kontext bench` wrote.")
        results = records_file.absolute().parent
        store = cls(results.parent if results.name == "results" else results)
        store.records_file = records_file
        return store

    @property
    def results(self) -> Path:
        """The folder that holds the records, their images and the raw samples."""
        return self.records_file.parent

    @property
    def samples_file(self) -> Path:
        return self.results / "samples.csv"

    def load(self) -> ResultFile:
        """Read and check the records. Raises InvalidInput for anything that is not a readable, known record file."""
        path = self.records_file
        try:
            data = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise InvalidInput(f"There are no records in {self.folder}: run `kontext bench` first.") from None
        except OSError as error:
            raise InvalidInput(f"{path} cannot be read ({error.strerror}): check its permissions.") from error
        except (ValueError, RecursionError):
            raise InvalidInput(f"{path} is not readable JSON: name the file that `kontext bench` wrote.") from None
        _check_version(path, data)
        try:
            result = ResultFile.model_validate(data)
        except ValidationError as error:
            location, message = first_mistake(error)
            what = f"{dotted(location)}: {message}"
            raise InvalidInput(
                f"{path} is not a kontext-fast record file ({what}): name one that `kontext bench` wrote."
            ) from None
        verification = result.verification
        if verification and content_hash(verification.margins) != verification.margins_sha256:
            raise InvalidInput(
                f"The margins in {path} are not those that were fixed before the verification: their hash is another; "
                "restore the file, or verify again."
            )
        return result

    def write(self, result: ResultFile) -> None:
        """Replace the records, and the raw samples rendered from them, and create the folders of the layout."""
        for name in FOLDERS:
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        write_atomically(self.records_file, (result.model_dump_json(indent=1) + "\n").encode())
        write_atomically(self.samples_file, samples_csv(result).encode())

    def add_scores(self, run_id: str, scores: Iterable[Score]) -> None:
        """Attach scores to a run. A score of the same output by the same metric takes the place of an earlier one.

        Raises InvalidInput if the run is unknown.
        """
        result = self.load()
        if all(record.run_id != run_id for record in result.records):
            raise InvalidInput(f"There is no run {run_id} in {self.records_file}: name one that is recorded.")
        new = tuple(scores)
        replaced = {_score_key(score) for score in new}

        def with_scores(record: Record) -> Record:
            if record.run_id != run_id:
                return record
            others = tuple(score for score in record.scores if _score_key(score) not in replaced)
            return record.model_copy(update={"scores": others + new})

        self.write(result.model_copy(update={"records": tuple(map(with_scores, result.records))}))

    def put_image(self, image: Image) -> str:
        """Store an image once and return its hash. Modes other than RGB, RGBA and L are stored as RGB."""
        if image.mode not in STORED_MODES:
            image = image.convert("RGB")
        digest = image_hash(image)
        path = self.image_path(digest)
        if not path.exists():
            png = io.BytesIO()
            image.save(png, format="PNG")
            write_atomically(path, png.getvalue())
        return digest

    def image_path(self, digest: str) -> Path:
        """Where the image with this hash is stored, whether or not it exists.

        Raises InvalidInput for anything but a hash, so that records from elsewhere cannot name other files.
        """
        if not HASH.fullmatch(digest):
            raise InvalidInput(f"{digest!r} is not an image hash (64 hexadecimal digits): the records were altered.")
        return self.results / "images" / f"{digest}.png"


def content_hash(values: Mapping[str, Any]) -> str:
    """The sha256 of JSON values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def image_hash(image: Image) -> str:
    """The name of an image in records: the sha256 of its mode, size and pixels."""
    header = f"{image.mode} {image.width}x{image.height}\n".encode()
    return hashlib.sha256(header + image.tobytes()).hexdigest()


def read_stored_image(path: Path) -> Image:
    """The image at `path`, in its own mode; what `put_image` stored there is called by its hash.

    Raises FileNotFoundError, and InvalidInput where the file is no picture or another one than its name says: nothing
    may be shown or judged under a hash that it does not have.
    """
    from PIL import Image as PILImage

    try:
        with PILImage.open(path, formats=("PNG",)) as image:
            image.load()
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, PILImage.DecompressionBombError):
        raise InvalidInput(f"The picture {path} cannot be read; restore it, or delete it and make it again.") from None
    if HASH.fullmatch(path.stem) and image_hash(image) != path.stem:
        raise InvalidInput(
            f"The picture {path} is not the one that was recorded; restore it, or delete it and make it again."
        )
    return image


def _check_version(path: Path, data: Any) -> None:
    version = data.get("schema_version") if isinstance(data, dict) else None
    if not isinstance(version, int) or isinstance(version, bool):
        raise InvalidInput(f"{path} is not a kontext-fast record file: name one that `kontext bench` wrote.")
    if version > SCHEMA_VERSION:
        raise InvalidInput(
            f"{path} was written by a newer kontext-fast (schema {version}, this one reads up to {SCHEMA_VERSION}): "
            "upgrade kontext-fast to read it."
        )


def _score_key(score: Score) -> tuple[str, int, str, str]:
    return (score.item, score.seed, score.image, score.metric)


def require_folder_for(path: Path) -> None:
    """Raise InvalidInput unless the folder of `path` exists or could be made beside others, and takes files.

    Only one level is ever made: more of them missing is a slip of the pen.
    """
    folder = path.parent
    if hasattr(path, "fs"):  # an address
        from kontext_fast.records.addresses import require_writable

        require_writable(folder)
        return
    if not folder.exists() and not folder.parent.exists():
        raise InvalidInput(f"There is no folder {folder.parent} for {path}; make it first, or choose another place.")
    there = folder if folder.exists() else folder.parent
    try:
        # By trying: rights say nothing of read-only disks, full ones, and what a root user may.
        with TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise InvalidInput(
            f"{path} cannot be written, since {there} takes no file ({error.strerror or error}); choose another place."
        ) from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path` through a temporary file in the same folder, which is created if missing.

    Raises OSError, and then leaves `path` as it was and no temporary file behind; InvalidInput for one elsewhere.
    """
    if hasattr(path, "fs"):
        from kontext_fast.records.addresses import write

        write(path, content)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut, where folders can be opened for that."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
