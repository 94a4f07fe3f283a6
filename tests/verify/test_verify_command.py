"""`kontext verify` as a user meets it: exit codes, the last line, bad input, and a kill in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kontext_fast.cli.main import run
from kontext_fast.engine.solver import adams_bashforth
from kontext_fast.optimizations import presets
from kontext_fast.optimizations.preset_file import write_preset
from kontext_fast.optimizations.presets import resolve
from kontext_fast.optimizations.techniques.solver import FittedSolver
from kontext_fast.records.store import ResultStore
from kontext_fast.verify import converged_reference
from kontext_fast.verify.journal import FOLDER
from kontext_fast.verify.request import every_preset
from tests.optimizations.test_plan import machine
from tests.planted_secrets import check_clean, plant
from tests.verify import faulty_optimizations as faulty
from tests.verify.fake_edits import write_dataset

pytestmark = pytest.mark.usefixtures("one_item_per_condition")

START = """
import sys
from kontext_fast.cli.main import run
from kontext_fast.verify import arms
arms.CONDITION_ITEMS = 1
sys.exit(run(sys.argv[1:]))
"""

Kontext = Callable[..., tuple[int, str, str]]


@pytest.fixture
def kontext(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kontext:
    """`kontext verify` in an empty folder, without a GPU; returns the exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def call(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = run(["verify", *map(str, arguments)])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return call


def _options(dense_checkpoint: Path, folder: Path, items: int = 2) -> list[object]:
    dataset = write_dataset(folder / "data", items)
    return ["--checkpoint", dense_checkpoint, "--dataset", dataset, "--steps", 2, "--device", "cpu"]


def test_exact_preset_passes_and_writes_everything(
    kontext: Kontext, dense_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(tmp_path / "home", monkeypatch)
    code, out, err = kontext(*_options(dense_checkpoint, tmp_path), "--preset", "fuse_qkv", "--out", "out", "--json")
    assert code == 0, err
    answer = json.loads(out.splitlines()[-1])
    assert [(preset["preset"], preset["level"]) for preset in answer["presets"]] == [("fuse_qkv", "L0")]
    assert Path(answer["page"]).is_file()
    assert "dino" in answer["not_measured"]
    result = ResultStore(Path("out")).load()
    assert result.command.startswith("kontext verify --checkpoint ")
    assert (Path("out") / "visualizations" / "quality" / "index.html").is_file()
    assert check_clean(tmp_path / "out") > 20


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_engine_on_tiny_only_rounds(kontext: Kontext) -> None:
    options = ("--checkpoint", "tiny", "--preset", "faithful", "--items", 12, "--steps", 2, "--batch", 12)
    code, out, err = kontext(*options, "--device", "cpu", "--out", "out", "--json")
    assert code == 0, err
    answer = json.loads(out.splitlines()[-1])
    assert [(preset["preset"], preset["level"] in ("L0", "L1")) for preset in answer["presets"]] == [("faithful", True)]
    assert not {"latent_error", "psnr", "ssim"} & set(answer["blind"])
    verification = ResultStore(Path("out")).load().verification
    assert verification is not None
    metrics = {facts.name: facts for facts in verification.metrics}
    assert metrics["judge_done"].not_measured is None
    assert metrics["clip_text"].model == "CLIP of tiny"
    assert len(metrics["clip_text"].weights_sha256 or "") == 64
    assert all(facts.not_measured for name, facts in metrics.items() if name in ("dino", "mask_preservation"))


@pytest.mark.slow
def test_converged_items_show_fewer_evaluations_as_farther(
    kontext: Kontext, dense_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(converged_reference.converged_reference, "__defaults__", (32,))
    rule = adams_bashforth((1.0, 0.3, 0.0), 1)
    write_preset(tmp_path / "two.toml", name="two-steps", summary="", optimizations=[FittedSolver(fitted=rule)])
    options = ("--preset", "fuse_qkv,two.toml", "--converged-items", 3, "--steps", 8, "--out", "out", "--json")
    code, out, err = kontext(*_options(dense_checkpoint, tmp_path, 3)[:-4], *options, "--device", "cpu")
    assert "as many as" in err
    answer = {preset["preset"]: preset["converged"] for preset in json.loads(out.splitlines()[-1])["presets"]}
    same, farther = answer["fuse_qkv"], answer["two-steps"]
    assert same["ratio"][0] == pytest.approx(1, abs=0.01)
    assert same["baseline_mean"] == pytest.approx(same["float32_mean"], rel=0.02)
    assert farther["ratio"][1] > 1.5
    assert (same["items"], farther["closeness"]) == (3, "farther"), err
    page = (Path("out") / "visualizations" / "quality" / "index.html").read_text()
    assert f"{farther['ratio'][0]:.2f} times as far from the model" in page
    records = Path("out/results/benchmark_results.json").read_bytes()
    assert kontext(*_options(dense_checkpoint, tmp_path, 3)[:-4], *options, "--device", "cpu", "--resume")[0] == code
    assert Path("out/results/benchmark_results.json").read_bytes() == records


def test_unverified_preset_fails_with_one_sentence(
    kontext: Kontext, dense_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(presets.PRESETS, "faulty", faulty.preset(faulty.BlockSkipped()))
    code, out, err = kontext(*_options(dense_checkpoint, tmp_path), "--preset", "fuse_qkv,faulty", "--out", "out")
    assert code == 1
    assert "L4 not measured" in out
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("Not verified as harmless: faulty (L4)")


def test_frontier_is_in_the_json_and_the_page(kontext: Kontext, dense_checkpoint: Path, tmp_path: Path) -> None:
    options = ["--preset", "fuse_qkv", "--out", "out", "--frontier", "--batch", 4, "--json"]
    code, out, err = kontext(*_options(dense_checkpoint, tmp_path), *options)
    assert code == 0, err
    points = {point["name"]: point for point in json.loads(out.splitlines()[-1])["frontier"]}
    assert list(points) == ["baseline", "fuse_qkv", "1 step"]
    assert all(point["fastest_s"] <= point["edit_s"] <= point["slowest_s"] for point in points.values())
    assert "Quality against time" in (Path("out") / "visualizations" / "quality" / "index.html").read_text()
    assert ResultStore(Path("out")).load().command.endswith("--batch 4 --frontier --dataset edits.jsonl")


def test_every_preset_is_verified_once() -> None:
    names = every_preset()
    assert {"faithful", "balanced", "fast", "turbo", "classic", "compile", "fuse_qkv"} <= set(names)
    assert "baseline" not in names
    assert set(names) - set(every_preset("someone/weights")) == {"tuned-10", "tuned-7"}
    plans = [resolve(name, machine()).content_hash for name in names]
    assert len(set(plans)) == len(plans)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--batch", "0"), "The batch is 0"),
        (("--preset", "fsat"), "There is no preset 'fsat'"),
        (("--preset", "baseline"), "not baseline"),
        (("--items", "1"), "at least 2"),
        (("--seeds", "1"), "at least 2 seeds"),
        (("--dataset", "nowhere"), "There is no data set nowhere"),
        (("--margins", "nowhere.toml"), "cannot be read"),
        (("--resume",), "--resume needs the folder"),
        (("--resume", "--out", "nowhere"), "no verification to resume"),
        (("--checkpoint", "someone/model"), "--dataset"),
        (("--seed", "-1"), "The seed is -1"),
        (("--steps", "0"), "number of steps is 0"),
    ],
)
def test_bad_input_is_one_sentence(arguments: tuple[str, ...], words: str, kontext: Kontext, tmp_path: Path) -> None:
    code, _, err = kontext("--checkpoint", "tiny", "--device", "cpu", *arguments)
    assert code == 2
    assert words in err.splitlines()[-1]
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_folder_that_is_not_empty_is_left_alone(kontext: Kontext, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    code, _, err = kontext("--checkpoint", "tiny", "--out", "out")
    assert code == 2
    assert "not empty" in err
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine.txt"]


@pytest.mark.slow
def test_killed_verification_resumes(dense_checkpoint: Path, tmp_path: Path, kontext: Kontext) -> None:
    options = [*_options(dense_checkpoint, tmp_path, items=3), "--preset", "fuse_qkv", "--out", "out"]
    process = subprocess.Popen(
        [sys.executable, "-c", START, "verify", *map(str, options)],
        cwd=tmp_path,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    journal = tmp_path / "out" / FOLDER / "outputs.jsonl"
    deadline = time.monotonic() + 120
    while not (journal.is_file() and journal.read_bytes().count(b"\n") > 3):
        assert process.poll() is None, process.stderr.read().decode() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = [line for line in journal.read_bytes().split(b"\n")[:-1] if line]
    code, out, err = kontext(*options, "--resume")
    assert code == 0, err
    assert "L0 identical" in out
    after = [line for line in journal.read_bytes().splitlines() if line]
    assert after[: len(before)] == before
    recorded = [(line["arm"], line["item"]) for line in map(json.loads, after[1:])]
    assert len(recorded) == len(set(recorded)) == 10 * 3 + 4


def test_help_names_every_option_without_torch() -> None:
    code = (
        "import sys; from kontext_fast.cli.main import run; run(['verify', '--help']); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0
    for option in (
        "--checkpoint",
        "--preset",
        "--items",
        "--seeds",
        "--dataset",
        "--frontier",
        "--resume",
        "--out",
        "--json",
    ):
        assert option in done.stdout
