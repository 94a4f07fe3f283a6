"""The loader of KontextBench, on a folder of the published layout that this test makes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from kontext_fast.datasets import read_dataset
from kontext_fast.datasets.kontextbench import CATEGORIES
from kontext_fast.errors import InvalidInput


@pytest.fixture
def copy_of_bench(tmp_path: Path) -> Path:
    """Two base images with the five categories in turn, three prompts each, as the published split has them."""
    images = tmp_path / "kontext-bench" / "test" / "images"
    images.mkdir(parents=True)
    lines = []
    for image in range(2):
        Image.new("RGB", (48, 64), ("red", "green")[image]).save(images / f"{image:04d}.jpg")
        for prompt in range(3):
            lines.append(
                {
                    "file_name": f"images/{image:04d}.jpg",
                    "instruction": f"instruction {prompt} of image {image}",
                    "category": CATEGORIES[(3 * image + prompt) % len(CATEGORIES)],
                    "key": f"{image:04d}_{prompt:02d}",
                    "image_idx": image,
                    "prompt_idx": prompt,
                }
            )
    metadata = images.parent / "metadata.jsonl"
    metadata.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "kontext-bench"


def test_every_entry_is_an_item_of_its_category(copy_of_bench: Path) -> None:
    dataset = read_dataset(copy_of_bench)
    assert dataset.name == "kontext-bench"
    assert dataset.rejected == ()
    assert len({item.id for item in dataset.items}) == 6
    assert {item.kind for item in dataset.items} == set(CATEGORIES)
    assert all(item.image.size == (48, 64) for item in dataset.items)


def test_split_folder_gives_the_same_items(copy_of_bench: Path) -> None:
    assert [item.id for item in read_dataset(copy_of_bench / "test").items] == [
        item.id for item in read_dataset(copy_of_bench).items
    ]


def test_bad_entries_are_named_and_others_kept(copy_of_bench: Path) -> None:
    metadata = copy_of_bench / "test" / "metadata.jsonl"
    lines = metadata.read_text().splitlines()
    (copy_of_bench / "test" / "images" / "0001.jpg").unlink()
    lines[1] = lines[1].replace(CATEGORIES[1], "Something Else")
    lines[2] = lines[2][:20]
    metadata.write_text("\n".join(lines))
    dataset = read_dataset(copy_of_bench)
    assert len(dataset.items) == 1
    assert [reason.split(" is left out")[0] for reason in dataset.rejected] == [
        "line 2",
        "line 3",
        "line 4",
        "line 5",
        "line 6",
    ]


def test_copy_without_images_is_an_error(copy_of_bench: Path) -> None:
    for file in (copy_of_bench / "test" / "images").iterdir():
        file.unlink()
    with pytest.raises(InvalidInput, match="download black-forest-labs/kontext-bench again"):
        read_dataset(copy_of_bench)
