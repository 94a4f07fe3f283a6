"""Every Python snippet and every `kontext` command of README and docs runs, as far as it needs no GPU and no server.

Snippets of a page run in order, as a reader types them, on a pipeline that was cut from `tiny`. Commands run in a
folder with what they name. Both are given one or two steps: what is tested is that they work as they are written.
"""

from __future__ import annotations

import copy
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from diffusers import FluxKontextPipeline

import kontext_fast
from kontext_fast.cli.main import build_app, run
from kontext_fast.optimizations.acceleration import current
from kontext_fast.records.schema import ResultFile
from kontext_fast.records.store import ResultStore
from tests import needs
from tests.pipelines import SIDE, picture, small_pipeline
from tests.report import suite_records
from tests.server.loras import write_lora
from tests.verify.fake_edits import write_dataset

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

NOT_HERE = {
    "OpenAI(": "a server",
    "flash3": "a GPU",
    "LOCAL_RANK": "processes of torchrun",
    "kontext_fast.tune(": "a data set and minutes",
    "tuned/": "a tuning",
}
"""What a snippet says that cannot run here, and what it needs."""

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(page: Path, language: str) -> list[str]:
    return [text for found, text in _BLOCK.findall(page.read_text(encoding="utf-8")) if found == language]


def commands() -> list[str]:
    """Every line of a shell block that calls `kontext`, once."""
    lines = [
        shlex.join(words)
        for page in PAGES
        for block in blocks(page, "sh")
        for line in block.replace("\\\n", " ").splitlines()
        if (words := shlex.split(line, comments=True)) and words[0] == "kontext"
    ]
    return list(dict.fromkeys(lines))


class FewSteps(FluxKontextPipeline):  # type: ignore[misc]
    """Two steps of a small image, wherever it is moved to."""

    def __call__(self, *args: Any, num_inference_steps: int = 28, **kwargs: Any) -> Any:
        small = {"max_area": SIDE**2, "height": SIDE, "width": SIDE, "_auto_resize": False, "max_sequence_length": 64}
        return super().__call__(*args, num_inference_steps=min(2, num_inference_steps), **{**small, **kwargs})

    def to(self, *_: Any, **__: Any) -> Any:
        return self


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What documents name: images, a LoRA, a data set and records."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    picture().save("photo.png")
    Path("photos").mkdir()
    for index in range(2):
        picture(index).save(f"photos/{index}.png")
        Path(f"photos/{index}.txt").write_text("make the background red")
    for name in ("style", "line"):
        write_lora(tmp_path / f"{name}.safetensors")
    write_dataset(tmp_path / "items", 3)
    for name in ("mine.jsonl", "edits.jsonl"):
        lines = (tmp_path / "items" / "edits.jsonl").read_text().replace('"image": "', '"image": "items/')
        Path(name).write_text(lines)
    Path("FOLDER").symlink_to("photos")
    Path("results").symlink_to(ROOT / "results")
    for name, result in {"mine": suite_records.sweep(), "own": _of("own", suite_records.ablation())}.items():
        ResultStore(tmp_path / name).write(result)
    for name in ("before", "after"):
        ResultStore(tmp_path / name).write(_of(name, suite_records.ablation()))
    return tmp_path


def _of(name: str, result: ResultFile) -> ResultFile:
    records = tuple(record.model_copy(update={"run_id": f"{name} {record.run_id}"}) for record in result.records)
    return result.model_copy(update={"records": records})


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return FewSteps(**small_pipeline().components)


@pytest.fixture
def pipe(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A pipeline of its own, which is what `from_pretrained` gives."""
    own = copy.deepcopy(pipeline)
    monkeypatch.setattr(FluxKontextPipeline, "from_pretrained", classmethod(lambda *_, **__: own))
    yield own
    _revert(own)


def _revert(pipe: Any) -> None:
    if (acceleration := current(pipe)) is not None:
        acceleration.revert()


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.stem)
def test_python_snippets_of_a_page_run_in_order(page: Path, folder: Path, pipe: Any) -> None:
    names: dict[str, Any] = {"kontext_fast": kontext_fast, "copy": copy, "pipe": pipe}
    names |= {"photo": picture(), "picture": picture()}
    for number, snippet in enumerate(blocks(page, "python"), 1):
        if any(word in snippet for word in NOT_HERE):
            continue
        _revert(pipe)
        exec(compile(snippet, f"{page.name}, snippet {number}", "exec"), names)
        assert names["pipe"] is pipe


def test_what_is_not_run_is_there() -> None:
    """So that a word of `NOT_HERE` that no page has any more leaves nothing out by accident."""
    snippets = [snippet for page in PAGES for snippet in blocks(page, "python")]
    for word in NOT_HERE:
        assert any(word in snippet for snippet in snippets), word


def test_results_of_the_cookbook_are_what_it_says(folder: Path, pipe: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The ones that a reader would compare."""
    saved, edited = (
        next(snippet for snippet in blocks(ROOT / "docs" / "cookbook.md", "python") if word in snippet)
        for word in ("cost.savings", "red.png")
    )
    exec(saved, {"kontext_fast": kontext_fast})
    printed = capsys.readouterr().out
    said = re.search(r"# (\$.*), \.\.\.", saved)
    assert said is not None
    assert printed.startswith(said.group(1))
    exec(edited, {"kontext_fast": kontext_fast, "pipe": pipe, "photo": picture()})
    assert re.fullmatch(r"EditResult\(\d+x\d+, \d+\.\d\d s, 2 of 2 steps computed, seed 1\)\n", capsys.readouterr().out)
    assert (folder / "red.png").is_file()


@pytest.mark.parametrize(
    "line", [pytest.param(line, marks=needs.s3) if "s3://" in line else line for line in commands()]
)
def test_command_of_a_document_is_understood(line: str, folder: Path) -> None:
    """Its options exist and take such values; nothing is run."""
    _, name, *arguments = shlex.split(line)
    group = typer.main.get_command(build_app())
    with group.make_context("kontext", [name, *arguments]) as context:
        command = group.commands[name]  # type: ignore[attr-defined]
        with command.make_context(name, list(arguments), parent=context) as parsed:
            assert parsed.params


PICTURES = ("edit", "generate", "showcase")
READS = ("cost", "compare", "presets", "doctor")
SLOW = ("report", "verify", "bench", "demo")
"""Those of `random`, which need a GPU, are left out."""
RUN_ELSEWHERE = ("serve", "tune", "capacity")
"""A server runs in tests/server; others have tests of their own, as `--ray`, `--gpus` and buckets of `edit` have."""


def _runnable(line: str) -> list[str]:
    """The words of a command, on `tiny` and with the least work where it would run a model."""
    _, name, *arguments = shlex.split(line)
    on_tiny = ["--checkpoint", "tiny", "--device", "cpu", "--steps", "1"]
    least = {
        "verify": [*on_tiny, "--items", "2", "--out", "verified"],
        "bench": [*on_tiny, *shlex.split("--rounds 1 --items 1 --calls 1 --warmup 0 --no-control")],
        **{picture: [*on_tiny, "--seed", "1"] for picture in PICTURES},
    }
    if name == "bench":
        # Folders of records stand there already, under the names that other commands read.
        arguments = [f"new-{word}" if before == "--out" else word for before, word in _with_before(arguments)]
    return [name, *arguments, *least.get(name, [])]


def _with_before(words: list[str]) -> list[tuple[str, str]]:
    return list(zip(["", *words], words, strict=False))


def _of_commands(*names: str) -> list[str]:
    return [line for line in commands() if shlex.split(line)[1] in names]


@pytest.mark.parametrize(
    "line",
    [
        line
        for line in _of_commands(*PICTURES, *READS)
        if not any(word in line for word in ("tuned/", "--ray", "--gpus", "s3://"))
    ],
)
def test_quick_command_of_a_document_runs(line: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if shlex.split(line)[1] in PICTURES and "--checkpoint" not in line:
        # As it is written it needs FLUX.1-Kontext-dev, and never takes tiny for it.
        assert run(shlex.split(line)[1:]) == 3
    assert run(_runnable(line)) == 0, capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in _of_commands(*SLOW) if "--checkpoint random" not in line])
def test_long_command_of_a_document_runs(line: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = run(_runnable(line))
    # Two items give no verdict.
    assert code in ((0, 1) if shlex.split(line)[1] == "verify" else (0,)), capfd.readouterr().err


def test_every_command_of_the_documents_is_run_somewhere() -> None:
    names = {shlex.split(line)[1] for line in commands()}
    assert names <= {*PICTURES, *READS, *SLOW, *RUN_ELSEWHERE}
