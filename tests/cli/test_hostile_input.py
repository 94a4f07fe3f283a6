"""Files that were altered, cut or made to break a command: it ends with one sentence, and leaves nothing half-written.

A thousand of them are slow; the first few of each kind are not.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kontext_fast.records.store import ResultStore
from tests.cli.conftest import Kontext, Outcome
from tests.records.builder import full
from tests.verify.fake_edits import write_dataset
from tests.verify.synthetic_results import noisy, verification

SAMPLE = 6
"""Of each kind of file among the fast tests."""
THOUSAND = {"records": 500, "verification": 150, "text": 152, "picture": 150, "journal": 50}
PART = 25
"""Files of one slow test, so that one that fails hides few others."""


def parts(kind: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("first", range(0, THOUSAND[kind], PART))


def seeds(kind: str, first: int) -> range:
    return range(first, min(first + PART, THOUSAND[kind]))


HOSTILE: tuple[Any, ...] = (
    None,
    True,
    "",
    -1,
    0,
    10**400,
    1e308,
    float("nan"),
    float("-inf"),
    [],
    {},
    [[[]]],
    "x" * 58,
    "y" * 5000,
    "<script>alert(1)</script> \\input{x} | `a` $\n\x00\x1b[31m",
    "../../../etc/passwd",
    "\ud83d\ude00 \u202e \u0000",
    "0" * 64,
)


def altered_values(content: bytes, rng: random.Random) -> bytes:
    """JSON with one to three values, keys or entries changed."""
    data = json.loads(content)
    for _ in range(rng.randint(1, 3)):
        place: Any = data
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(place[key], dict | list) and place[key] and rng.random() < 0.9:
                place = place[key]
                continue
            match rng.randrange(5):
                case 0 if isinstance(place, dict):
                    del place[key]
                case 1 if isinstance(place, list):
                    place.append(deepcopy(place[key]))
                case 2 if isinstance(place[key], int | float) and abs(place[key]) < 1e300:
                    place[key] = place[key] * rng.choice([-1, 1e9, 1e-9, 1e300])
                case _:
                    place[key] = deepcopy(rng.choice(HOSTILE))
            break
    return json.dumps(data).encode("utf-8", "surrogatepass")


def broken_bytes(content: bytes, rng: random.Random) -> bytes:
    match rng.randrange(4):
        case 0:
            return content[: rng.randrange(len(content))]
        case 1:
            place = rng.randrange(len(content))
            return content[:place] + rng.randbytes(rng.randint(1, 40)) + content[place + rng.randint(0, 40) :]
        case 2:
            place = rng.randrange(len(content))
            return (
                content[:place]
                + rng.choice([b"[", b"{", b'{"a":', b"a=[", b"1e999 ", b"nan "]) * 5000
                + content[place:]
            )
        case _:
            return bytes(byte ^ (rng.random() < 0.002) * rng.randrange(256) for byte in content)


def mutate(content: bytes, rng: random.Random, *, is_json: bool) -> bytes:
    return altered_values(content, rng) if is_json and rng.random() < 0.8 else broken_bytes(content, rng)


def check(outcome: Outcome, what: str, arguments: Sequence[object]) -> None:
    shown = f"{what}: {' '.join(map(str, arguments))}: {outcome.err[-2000:]}"
    assert outcome.code in (0, 1, 2, 3), shown
    lines = outcome.err.strip().splitlines()
    if outcome.code:
        assert lines, shown
        assert lines[-1].rstrip().endswith((".", "?")), shown
        assert "Traceback" not in outcome.err, shown
    if outcome.code == 0 and "--json" in arguments:
        json.loads(outcome.out.splitlines()[-1], parse_constant=lambda word: pytest.fail(f"{word} in JSON, {shown}"))


def check_files(folder: Path, what: str) -> None:
    for file in folder.rglob("*"):
        assert not file.name.endswith(".tmp"), f"{what}: {file}"
        if file.suffix == ".html":
            assert file.read_text(encoding="utf-8").rstrip().endswith("</html>"), f"{what}: {file}"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = ResultStore(tmp_path_factory.mktemp("hostile") / "bench")
    store.write(full(store))
    return store.folder


@pytest.fixture(scope="module")
def verified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "verify"
    return verification(folder, {"fast": noisy(3)}, items=4, control_items=2).folder


def alter_and_report(
    kontext: Kontext, source: Path, tmp_path: Path, seed: int, commands: Callable[[Path], Any]
) -> None:
    rng = random.Random(seed)
    folder = tmp_path / "altered"
    shutil.copytree(source, folder)
    file = ResultStore(folder).records_file
    file.write_bytes(mutate(file.read_bytes(), rng, is_json=True))
    for number, arguments in enumerate(commands(folder)):
        out = tmp_path / f"out{number}"
        arguments = [out if argument == "OUT" else argument for argument in arguments]
        check(kontext(*arguments), f"{source.name} {seed}", arguments)
        if out.is_dir():
            check_files(out, f"{source.name} {seed}")
            shutil.rmtree(out)
    shutil.rmtree(folder)


def of_a_bench(folder: Path) -> list[list[object]]:
    return [
        ["report", folder, "--out", "OUT", "--json"],
        ["report", folder, "--out", "OUT", "--for", "blog"],
        ["report", folder, "--out", "OUT", "--for", "paper"],
        ["report", folder, "--out", "OUT", "--for", "business"],
        ["cost", folder, "--price", "2", "--json"],
        ["compare", folder, folder, "--json"],
    ]


@pytest.mark.parametrize("seed", range(SAMPLE))
def test_altered_records_end_with_one_sentence(seed: int, kontext: Kontext, bench: Path, tmp_path: Path) -> None:
    alter_and_report(kontext, bench, tmp_path, seed, lambda folder: of_a_bench(folder)[seed % 6 :: 6])


@pytest.mark.parametrize("letters", [58, 300])
def test_names_of_any_length_get_a_report(letters: int, kontext: Kontext, bench: Path, tmp_path: Path) -> None:
    shutil.copytree(bench, tmp_path / "long")
    file = ResultStore(tmp_path / "long").records_file
    file.write_text(file.read_text().replace('"cache"', f'"{"n" * letters}"'))
    outcome = kontext("report", tmp_path / "long")
    assert outcome.code == 0, outcome.err


@pytest.mark.slow
@pytest.mark.timeout(1800)
@parts("records")
def test_hundreds_of_altered_records(first: int, kontext: Kontext, bench: Path, tmp_path: Path) -> None:
    for seed in seeds("records", first):
        alter_and_report(kontext, bench, tmp_path, seed, of_a_bench)


def of_a_verification(bench: Path) -> Callable[[Path], list[list[object]]]:
    return lambda folder: [
        ["report", bench, "--out", "OUT", "--verification", folder],
        ["report", folder, "--out", "OUT"],
    ]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@parts("verification")
def test_hundreds_of_altered_verifications(
    first: int, kontext: Kontext, bench: Path, verified: Path, tmp_path: Path
) -> None:
    for seed in seeds("verification", first):
        alter_and_report(kontext, verified, tmp_path, seed, of_a_verification(bench))


TEXTS: dict[str, tuple[str, Callable[[Path, Path], list[object]]]] = {
    "suite": (
        'description = "mine"\npresets = ["baseline", "compile"]\nrounds = 2\ncalls = 3\nitems = 2\nsizes = ["64x64"]\n'
        "steps = [2]\ndeadline_s = 60.0\n",
        # No call at all is refused, so that nothing is measured whatever the file says.
        lambda file, bench: ["bench", "--suite", file, "--checkpoint", "tiny", "--calls", "0", "--out", "OUT"],
    ),
    "margins": (
        Path(__file__).parents[2].joinpath("src/kontext_fast/verify/margins.toml").read_text(),
        lambda file, bench: ["verify", "--checkpoint", "tiny", "--margins", file, "--items", "1", "--out", "OUT"],
    ),
    "prices": (
        '[[price]]\nid = "mine"\nprovider = "me"\nproduct = "card"\nregion = "here"\nkind = "on-demand"\n'
        'source = "an invoice"\nday = 2026-11-25\ncard = "H100"\nmemory_gib = 80\nusd_per_hour = 2.5\n',
        lambda file, bench: ["cost", bench, "--prices", file, "--price", "mine", "--json"],
    ),
    "settings": (
        'preset = ["fast", "turbo"]\nsteps = 20\n[edit]\nguidance = 2.5\n[bench]\nbudget = 20.0\n',
        lambda file, bench: ["presets", "--json", "--config", file],
    ),
}


def alter_text(kontext: Kontext, kind: str, seed: int, bench: Path, tmp_path: Path) -> None:
    text, command = TEXTS[kind]
    file = tmp_path / f"{kind}.toml"
    file.write_bytes(mutate(text.encode(), random.Random(seed), is_json=False))
    arguments = [tmp_path / "out" if argument == "OUT" else argument for argument in command(file, bench)]
    check(kontext(*arguments), f"{kind} {seed}", arguments)


@pytest.mark.parametrize("kind", TEXTS)
def test_altered_texts_end_with_one_sentence(kind: str, kontext: Kontext, bench: Path, tmp_path: Path) -> None:
    for seed in range(SAMPLE):
        alter_text(kontext, kind, seed, bench, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", TEXTS)
def test_hundreds_of_altered_texts(kind: str, kontext: Kontext, bench: Path, tmp_path: Path) -> None:
    for seed in range(THOUSAND["text"] // len(TEXTS)):
        alter_text(kontext, kind, seed, bench, tmp_path)


def alter_picture(kontext: Kontext, seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    suffix = rng.choice(["png", "jpg", "webp", "gif", "tif", "bmp"])
    file = tmp_path / f"cat.{suffix}"
    Image.effect_noise((64, 64), 80).convert("RGB").save(file)
    file.write_bytes(mutate(file.read_bytes(), rng, is_json=False))
    out = tmp_path / "out.png"
    arguments = [
        "edit",
        file,
        "make it blue",
        "--checkpoint",
        "tiny",
        "--preset",
        "baseline",
        "--steps",
        "1",
        "-o",
        out,
    ]
    outcome = kontext(*arguments)
    check(outcome, f"picture {seed}", arguments)
    assert out.exists() == (outcome.code == 0)
    out.unlink(missing_ok=True)


def test_altered_pictures_end_with_one_sentence(kontext: Kontext, tmp_path: Path) -> None:
    for seed in range(2):
        alter_picture(kontext, seed, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@parts("picture")
def test_hundreds_of_altered_pictures(first: int, kontext: Kontext, tmp_path: Path) -> None:
    for seed in seeds("picture", first):
        alter_picture(kontext, seed, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@parts("journal")
def test_verification_resumes_over_altered_journals(first: int, kontext: Kontext, tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "edits", 2)
    line = ["verify", "--checkpoint", "tiny", "--preset", "channels_last", "--dataset", dataset, "--items", "2"]
    line += ["--steps", "1", "--out"]
    assert kontext(*line, tmp_path / "whole").code in (0, 1)
    for seed in seeds("journal", first):
        rng = random.Random(seed)
        folder = tmp_path / "altered"
        shutil.copytree(tmp_path / "whole", folder)
        files = [folder / "work" / "outputs.jsonl", *sorted((folder / "work").rglob("*.npy"))]
        file = files[0] if seed % 2 else rng.choice(files)
        file.write_bytes(broken_bytes(file.read_bytes(), rng))
        ResultStore(folder).records_file.unlink()
        outcome = kontext(*line, folder, "--resume")
        check(outcome, f"journal {seed}", line)
        shutil.rmtree(folder)
