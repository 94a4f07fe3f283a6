"""Secrets and folders that are planted everywhere, and the one place that keeps them out of records."""

from __future__ import annotations

from pathlib import Path

import pytest

from kontext_fast.records.privacy import FLAGS, NOT_RECORDED, recorded_flags, redact

SECRET = "q7Zk2pXw9vT4"
TOKENS = (
    "hf_" + "a1B2" * 8,
    "ghp_" + "x9" * 18,
    "sk-" + "proj" * 8,
    "AKIA" + "Q" * 16,
    "eyJhbGci.eyJzdWIi.c2lnbmF0dXJl",
)


@pytest.mark.parametrize("token", TOKENS)
def test_token_is_known_by_its_look(token: str) -> None:
    assert redact(f"refused: {token}.", {}) == "refused: [secret]."


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "CUDA_API_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD", "registry_auth"]
)
def test_values_of_secret_variables_are_replaced(name: str) -> None:
    assert redact(f"it said {SECRET}, twice {SECRET}", {name: SECRET}) == "it said [secret], twice [secret]"


def test_secret_inside_a_longer_one_leaves_nothing_of_it() -> None:
    environment = {"A_TOKEN": "zz1234", "B_TOKEN": "abc-zz1234-def", "C_TOKEN": "12345"}
    assert redact("abc-zz1234-def, zz1234 and 12345", environment) == "[secret], [secret] and 12345"


def test_values_of_other_variables_and_short_ones_stay() -> None:
    assert redact("tiny on cuda", {"KONTEXT_CHECKPOINT": "tiny", "USE_AUTH": "on"}) == "tiny on cuda"


@pytest.mark.parametrize(
    "text",
    [
        f"token={SECRET}",
        f'{{"password": "{SECRET}"}}',
        f"api_key: {SECRET}, retry",
        f"https://jane:{SECRET}@hub.example/model",
        f"Authorization: Bearer {SECRET}",
        f"https://hub.example/model?token={SECRET}&rev=main",
    ],
)
def test_assigned_secret_is_removed(text: str) -> None:
    assert SECRET not in redact(text, {})


def test_what_stands_around_a_secret_stays() -> None:
    assert redact(f"pip got token={SECRET}, retry", {}) == "pip got token=[secret], retry"
    assert redact(f"from https://jane:{SECRET}@hub.example/x", {}) == "from https://[secret]@hub.example/x"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/jane/photos/cat.jpg is missing", ".../cat.jpg is missing"),
        ("No such file: '/home/jane doe/my photos/cat.jpg'", "No such file: '.../cat.jpg'"),
        ("No such file: /home/jane doe/my photos/cat.jpg", "No such file: .../cat.jpg"),
        ('File "/Users/Jane Doe/a, b/x.py", line 3', 'File ".../x.py", line 3'),
        ("file:///home/jane/cat.jpg", ".../cat.jpg"),
        ("see file:///home/jane%20doe/x/cat.jpg.", "see .../cat.jpg."),
        ("OSError:/home/jane/x/model.bin", "OSError:.../model.bin"),
        (r"C:\Users\Jane Doe\x\cat.jpg is gone", ".../cat.jpg is gone"),
        (r"\\server\share\cat.jpg", ".../cat.jpg"),
        ("/opt/models/kontext/x.safetensors", ".../x.safetensors"),
        ("2 of 4 images/s, a/b and 1/2", "2 of 4 images/s, a/b and 1/2"),
        ("https://huggingface.co/black-forest-labs/FLUX.1-dev", "https://huggingface.co/black-forest-labs/FLUX.1-dev"),
    ],
)
def test_folders_are_shortened_and_the_rest_stays(text: str, expected: str) -> None:
    assert redact(text, {}) == expected


def test_home_of_any_name_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path("/data/people/jane doe (old)"))
    assert redact("read /data/people/jane doe (old)/my photos/cat.jpg", {}) == "read .../cat.jpg"
    assert redact("in /data/people/jane doe (old)", {}) == "in ..."


def test_flag_of_its_own_look_is_recorded_alone() -> None:
    environment = {
        "OMP_NUM_THREADS": "4",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True,max_split_size_mb:128",
        "TORCH_CUDA_ARCH_LIST": "8.0 9.0a+PTX",
        "CUDA_VISIBLE_DEVICES": "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6",
        "CUDA_API_TOKEN": SECRET,
        "TORCH_HUB_PASSWORD": SECRET,
        "TORCHINDUCTOR_CACHE_DIR": "/home/jane/cache",
    }
    assert recorded_flags(environment) == {
        "OMP_NUM_THREADS": "4",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True,max_split_size_mb:128",
        "TORCH_CUDA_ARCH_LIST": "8.0 9.0a+PTX",
        "CUDA_VISIBLE_DEVICES": NOT_RECORDED,
    }


@pytest.mark.parametrize("name", FLAGS)
@pytest.mark.parametrize("value", [SECRET, TOKENS[0], "/home/jane/x", "jane.doe@mail.example", "1\n2", "1" * 40])
def test_no_flag_takes_a_secret(name: str, value: str) -> None:
    assert recorded_flags({name: value}) == {name: NOT_RECORDED}
