"""Settings of a server: what is refused before anything is loaded."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from kontext_fast.errors import InvalidInput
from kontext_fast.server.run import _listen
from kontext_fast.server.settings import LoraFile, ServerSettings, parse_lora


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ink.safetensors", LoraFile(name="ink", path=Path("ink.safetensors"))),
        ("my=a/ink.safetensors", LoraFile(name="my", path=Path("a/ink.safetensors"))),
        ("my=a/ink.safetensors:0.5", LoraFile(name="my", path=Path("a/ink.safetensors"), strength=0.5)),
        ("ink.safetensors:-1", LoraFile(name="ink", path=Path("ink.safetensors"), strength=-1.0)),
    ],
)
def test_lora_is_read_with_name_and_strength(text: str, expected: LoraFile) -> None:
    assert parse_lora(text) == expected


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"presets": ("fast", "fast")}, "presets"),
        ({"loras": ("a b=x.safetensors",)}, "letters, digits"),
        ({"loras": ("x=a.safetensors", "x=b.safetensors")}, "same name"),
        ({"url_hosts": ("https://example.com/",)}, "images.example.com"),
        ({"url_hosts": ("127.0.0.1",)}, "images.example.com"),
        ({"api_keys": ("short",)}, "16 letters"),
        ({"queue": 0}, "queue"),
        ({"deadline_s": 0}, "deadline-s"),
        ({"port": 70_000}, "port"),
    ],
)
def test_impossible_setting_is_refused_by_name(values: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as raised:
        ServerSettings(**values)
    assert "short" not in str(raised.value)


def test_api_key_is_not_shown() -> None:
    settings = ServerSettings(api_keys=("a-secret-of-the-operator",))
    assert "a-secret-of-the-operator" not in f"{settings!r} {settings}"


@pytest.mark.parametrize(("host", "expected"), [("127.0.0.1", True), ("::1", True), ("0.0.0.0", False)])
def test_loopback_is_recognized(host: str, expected: bool) -> None:
    assert ServerSettings(host=host).on_loopback is expected


def test_answers_are_sent_at_once() -> None:
    """asyncio sets TCP_NODELAY on sockets that name TCP alone; else a small answer waits for the client's ACK."""
    with _listen(ServerSettings(checkpoint="tiny", port=0)) as listener:
        assert listener.proto == socket.IPPROTO_TCP
