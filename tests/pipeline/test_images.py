from __future__ import annotations

import os
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from kontext_fast.datasets.folder import read_folder
from kontext_fast.errors import InvalidInput
from kontext_fast.pipeline.edit import EditRequest
from kontext_fast.pipeline.images import FORMATS, STITCHED, ImageFile, Origin, read_origin, to_rgb
from kontext_fast.version import __version__

RED = (255, 0, 0)

ORIGIN = Origin(
    instruction="mach es gr\u00fcn \u2192 \U0001f7e2",
    preset="classic",
    checkpoint="tiny",
    steps=20,
    guidance=2.5,
    seed=7,
    negative="a star",
    true_cfg=2.0,
    size=(64, 48),
    lora=("style.safetensors:0.8",),
)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"]
)
def test_every_mode_becomes_rgb_of_the_same_size(mode: str) -> None:
    source = Image.new("RGBA", (20, 16), (*RED, 255)) if mode != "LAB" else Image.new("RGB", (20, 16), RED)
    if mode == "La":
        source = source.convert("LA")
    if mode == "PA":
        source = source.convert("P")
    converted = to_rgb(source.convert(mode))
    assert (converted.mode, converted.size) == ("RGB", (20, 16))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK", "HSV"])
def test_color_is_preserved(mode: str) -> None:
    color = np.asarray(to_rgb(Image.new("RGB", (16, 16), RED).convert(mode)))[0, 0]
    assert np.abs(color.astype(int) - RED).max() <= 2


def test_transparency_becomes_white() -> None:
    assert to_rgb(Image.new("RGBA", (16, 16), (*RED, 0))).getpixel((0, 0)) == (255, 255, 255)
    assert to_rgb(Image.new("LA", (16, 16), (0, 128))).getpixel((0, 0)) == (127, 127, 127)


def test_transparent_palette_color_becomes_white() -> None:
    image = Image.new("P", (16, 16), 0)
    image.putpalette([*RED, 0, 0, 255])
    image.info["transparency"] = 0
    assert to_rgb(image).getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.full((16, 16), 32768, dtype=np.uint16)
    path = tmp_path / "gray.png"
    Image.fromarray(values).save(path)
    assert to_rgb(path).getpixel((0, 0)) == (128, 128, 128)
    assert to_rgb(Image.fromarray(values)).getpixel((0, 0)) == (128, 128, 128)


def test_photo_is_rotated_by_its_exif(tmp_path: Path) -> None:
    image = Image.new("RGB", (32, 16), "blue")
    image.paste(RED, (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.jpg"
    image.save(path, exif=exif, quality=100, subsampling=0)
    upright = to_rgb(path)
    assert upright.size == (16, 32)
    top = upright.getpixel((8, 2))
    assert isinstance(top, tuple)
    assert top[0] > 240


def profile_with_red_and_blue_swapped() -> bytes:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for old, new in ((b"rXYZ", b"????"), (b"bXYZ", b"rXYZ"), (b"????", b"bXYZ")):
        profile = profile.replace(old, new)
    return profile.replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_color_profile_is_applied(mode: str) -> None:
    image = Image.new("RGB", (16, 16), RED).convert(mode)
    image.info["icc_profile"] = profile_with_red_and_blue_swapped()
    red, _, blue = np.asarray(to_rgb(image))[0, 0]
    assert blue > 250
    assert red < 5


@pytest.mark.parametrize(
    "profile", [b"not a profile", ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()]
)
@pytest.mark.parametrize("mode", ["L", "P", "RGB", "CMYK"])
def test_unusable_color_profile_changes_nothing(profile: bytes, mode: str) -> None:
    image = Image.new("RGB", (16, 16), (10, 20, 30)).convert(mode)
    plain = to_rgb(image)
    image.info["icc_profile"] = profile
    assert to_rgb(image).tobytes() == plain.tobytes()


SRGB_PRIMARIES = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))
"""Red, green and blue in XYZ of the D50 white of profiles."""


def icc_profile(space: str, gamma: float, name: str, primaries: Any = SRGB_PRIMARIES) -> bytes:
    """An ICC profile of version 2: a gray one, or one of three primaries, with a power curve."""

    def xyz(values: Any) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    described = name.encode() + b"\0"
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(described)) + described + bytes(8 + 3 + 67),
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": xyz((0.9642, 1.0, 0.8249)),
    }
    if space == "GRAY":
        tags[b"kTRC"] = curve
    else:
        for letter, primary in zip(b"rgb", primaries, strict=True):
            tags[bytes([letter]) + b"XYZ"] = xyz(primary)
            tags[bytes([letter]) + b"TRC"] = curve
    table, content = struct.pack(">I", len(tags)), b""
    for signature, data in tags.items():
        padded = data + bytes(-len(data) % 4)
        table += signature + struct.pack(">II", 132 + 12 * len(tags) + len(content), len(data))
        content += padded
    header = struct.pack(">I", 128 + len(table) + len(content)) + b"none" + struct.pack(">I", 0x02400000)
    header += b"mntr" + space.encode().ljust(4) + b"XYZ " + bytes(12) + b"acsp" + bytes(28)
    header += xyz((0.9642, 1.0, 0.8249))[8:]
    return header.ljust(128, b"\0") + table + content


def srgb_of_linear(value: float) -> float:
    return 255 * (1.055 * (value / 255) ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("name", ["linear sRGB", "sRGB IEC61966-2.1", "Linear", "not srgb at all"])
def test_linear_profile_is_applied_whatever_its_name(name: str) -> None:
    image = Image.new("RGB", (16, 16), (128, 64, 200))
    image.info["icc_profile"] = icc_profile("RGB", 1.0, name)
    converted = np.asarray(to_rgb(image))[0, 0]
    np.testing.assert_allclose(converted, [srgb_of_linear(value) for value in (128, 64, 200)], atol=2)


@pytest.mark.parametrize("seed", range(6))
def test_name_of_a_profile_has_no_part_in_colors(seed: int) -> None:
    random = np.random.default_rng(seed)
    primaries = np.array(SRGB_PRIMARIES) * random.uniform(0.8, 1.2, (3, 1))
    gamma = random.uniform(1.0, 2.6)
    image = Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    pictures = []
    for name in ("a camera", "sRGB", "My sRGB display"):
        image.info["icc_profile"] = icc_profile("RGB", gamma, name, primaries)
        pictures.append(to_rgb(image).tobytes())
    assert len(set(pictures)) == 1
    assert pictures[0] != image.tobytes()


@pytest.mark.parametrize("mode", ["L", "LA", "La", "I;16"])
def test_profile_of_a_gray_image_is_applied(mode: str) -> None:
    image = (
        Image.fromarray(np.full((16, 16), 128 * 257, np.uint16)) if mode == "I;16" else Image.new("L", (16, 16), 128)
    )
    if mode in ("LA", "La"):
        image.putalpha(255)
    image = image.convert(mode) if mode == "La" else image
    image.info["icc_profile"] = icc_profile("GRAY", 1.0, "linear gray")
    np.testing.assert_allclose(np.asarray(to_rgb(image))[0, 0], [srgb_of_linear(128)] * 3, atol=2)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_profiles_that_are_srgb_leave_pixels_untouched(mode: str) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)).convert(mode)
    plain = to_rgb(image)
    image.info["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert to_rgb(image).tobytes() == plain.tobytes()


def test_heic_names_what_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo = tmp_path / "photo.HEIC"
    photo.write_bytes(b"\0\0\0\x18ftypheic")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(InvalidInput, match="pip install pillow-heif"):
        to_rgb(photo)


def test_avif_is_read(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), RED).save(tmp_path / "photo.avif")
    assert np.asarray(to_rgb(tmp_path / "photo.avif"))[0, 0, 0] > 240


def test_list_of_one_image_is_that_image() -> None:
    assert to_rgb([Image.new("RGB", (24, 20), RED)]).getpixel((3, 4)) == RED


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ([], "empty"),
        ([Image.new("RGB", (16, 16)), 42], "type int"),
        (b"no image", "The input image is not an image that can be read"),
        (Image.new("RGB", (0, 16)), "no pixels"),
        (42, "type int"),
        (None, "type NoneType"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_anything_but_one_image_is_refused(image: Any, words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as caught:
        to_rgb(image)
    assert "\n" not in str(caught.value)


def test_several_images_are_joined_in_the_height_of_the_first(tmp_path: Path) -> None:
    Image.new("RGB", (10, 40), "blue").save(tmp_path / "blue.png")
    small = np.full((10, 15, 3), (0, 255, 0), np.uint8)
    joined = to_rgb([Image.new("RGB", (30, 20), "red"), tmp_path / "blue.png", small])
    assert joined.size == (30 + 5 + 30, 20)
    expected = np.zeros((20, 65, 3), np.uint8)
    expected[:, :30], expected[:, 30:35], expected[:, 35:] = (255, 0, 0), (0, 0, 255), (0, 255, 0)
    np.testing.assert_array_equal(np.asarray(joined), expected)
    assert to_rgb(joined).info[STITCHED] == 3
    assert STITCHED not in to_rgb([small]).info
    assert to_rgb((tmp_path / "blue.png").read_bytes()).size == (10, 40)


def test_unreadable_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "text.png"
    text.write_text("no image")
    whole = tmp_path / "whole.png"
    Image.effect_noise((64, 64), 50).save(whole)
    cut = tmp_path / "cut.png"
    cut.write_bytes(whole.read_bytes()[:500])
    for path, words in (
        (text, "not an image"),
        (cut, "damaged"),
        (tmp_path, "is a folder"),
        (tmp_path / "no", "no image"),
    ):
        for source in (path, str(path)):
            with pytest.raises(InvalidInput, match=words):
                to_rgb(source)
    for limit in (3000, 1000):  # Pillow warns below twice its limit and raises above
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(InvalidInput, match="too many pixels"):
            to_rgb(whole)


def save(path: Path, origin: Origin = ORIGIN) -> Image.Image:
    image = Image.effect_noise((32, 16), 50).convert("RGB")
    ImageFile(path).save(image, origin)
    return image


@pytest.mark.parametrize("suffix", [*FORMATS, ".JPG"])
def test_every_format_carries_all_facts_and_is_that_format(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "new" / f"out{suffix}"
    image = save(path)
    assert read_origin(path) == {
        "software": "kontext-fast",
        "version": __version__,
        "seed": "7",
        "preset": "classic",
        "checkpoint": "tiny",
        "instruction": ORIGIN.instruction,
        "steps": "20",
        "guidance": "2.5",
        "negative": "a star",
        "true_cfg": "2.0",
        "size": "64x48",
        "lora": "style.safetensors:0.8",
    }
    with Image.open(path) as saved:
        assert saved.format == FORMATS[suffix.lower()]
        off = np.abs(np.asarray(saved.convert("RGB"), dtype=int) - np.asarray(image, dtype=int)).mean()
    assert off == 0 if suffix == ".png" else off < 12
    assert [entry.name for entry in path.parent.iterdir()] == [f"out{suffix}"]


def test_facts_leave_out_what_was_not_given() -> None:
    request = EditRequest("make it red", seed=3)
    facts = Origin.of(request, seed=3, preset="faithful", checkpoint="tiny").facts()
    assert facts == {
        "seed": "3",
        "preset": "faithful",
        "checkpoint": "tiny",
        "instruction": "make it red",
        "steps": "28",
        "guidance": "2.5",
    }


def test_image_of_another_program_has_no_facts(tmp_path: Path) -> None:
    image = Image.new("RGB", (16, 16))
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0something"
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "b.jpg", exif=exif)
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0no JSON"
    image.save(tmp_path / "c.webp", exif=exif)
    (tmp_path / "d.png").write_text("no image")
    for name in ("a.png", "b.jpg", "c.webp", "d.png", "missing.png"):
        assert read_origin(tmp_path / name) == {}


def test_failed_save_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder.png").mkdir()
    for name, words in (
        ("file/out.png", "cannot be written"),
        ("folder.png", "folder"),
        ("out.gif", r"end in \.png"),
        ("no/such/out.png", "There is no folder"),
    ):
        with pytest.raises(InvalidInput, match=words):
            save(tmp_path / name)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder.png"]


def test_interrupted_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.png"
    path.write_bytes(b"old")

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(path)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.png"]


def test_postscript_called_png_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = tmp_path / "started"
    for program in ("gs", "gswin64c"):
        script = tmp_path / program
        script.write_text(f"#!/bin/sh\ntouch {started}\nexit 1\n")
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    picture = tmp_path / "cat.png"
    picture.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(InvalidInput, match="not an image"):
        to_rgb(picture)
    assert not started.exists()


@pytest.mark.parametrize("kind", ["text", "profile"])
def test_chunk_that_unfolds_to_megabytes_is_refused(kind: str, tmp_path: Path) -> None:
    facts = PngInfo()
    facts.add_text("comment", "a" * 40_000_000, zip=True)
    bomb = {"pnginfo": facts} if kind == "text" else {"icc_profile": bytes(40_000_000)}
    Image.new("RGB", (16, 16)).save(tmp_path / "bomb.png", **bomb)
    assert read_origin(tmp_path / "bomb.png") == {}
    with pytest.raises(InvalidInput, match=r"bomb\.png is damaged"):
        to_rgb(tmp_path / "bomb.png")
    Image.new("RGB", (16, 16)).save(tmp_path / "cat.png")
    for name in ("bomb", "cat"):
        (tmp_path / f"{name}.txt").write_text("make it blue")
    dataset = read_folder(tmp_path)
    assert len(dataset.items) == 1
    assert [line for line in dataset.rejected if "bomb.png" in line]
