from __future__ import annotations

import base64
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from kontext_fast.analysis.groups import groups
from kontext_fast.cli.main import run
from kontext_fast.errors import InvalidInput
from kontext_fast.records.schema import Record, ResultFile
from kontext_fast.records.store import ResultStore
from kontext_fast.report.gallery import MOST_ITEMS, Gallery, GalleryItem, GalleryPicture, gallery
from kontext_fast.report.output.page import render
from kontext_fast.report.output.publish import publish
from tests.records.builder import RANDOM, full, item, record, result, sample, timed, workload
from tests.report import suite_records
from tests.report.reports import report_of

DRAWN = ("speedup_comparison", "memory_usage", "cold_start", "stage_breakdown")
"""Charts that have something to show of the records of `full`, in the order of the page; a new chart may be another."""

EMPTY = ("ablation", "resolution_scaling", "step_resolution_heatmap", "billing_models", "like_for_like", "tradeoff")
"""Charts that have nothing to show of them."""


class Page(HTMLParser):
    """What the tests ask of a page: its words, its pictures, its headings and whether its tags match."""

    VOID = frozenset({"meta", "img", "br", "link", "input"})

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text()
        self.images: list[dict[str, str]] = []
        self.headings: list[int] = []
        self._words: list[str] = []
        self._open: list[str] = []
        self.feed(self.source)
        self.close()
        assert not self._open

    @property
    def text(self) -> str:
        return " ".join(" ".join(self._words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.images.append({name: value or "" for name, value in attrs})
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("style", "title", "script", "option"):
            self._words.append(data)


def page_of(stored: ResultFile, store: ResultStore) -> Page:
    store.write(stored)
    return Page(publish(store.folder).document)


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    return ResultStore(tmp_path / "out")


def test_page_contains_every_part_of_the_report(store: ResultStore) -> None:
    text = page_of(full(store), store).text
    for words in (
        "An edit in 0.510 s instead of 1.02 s on Imaginary CPU 9000",
        "2.00x as fast",
        "Imaginary CPU 9000",
        "2001-02-03",
        "128x128 pixels, reference 128x128",
        "48 text + 64 image + 64 reference",
        "make the circle of a blue",
        "rest kept",
        "not done",
        "the circle is still red",
        "refused There is no C++ compiler: install g++.",
        "The process was killed by signal 11.",
        "says nothing about how good real Kontext images look",
        "unit of replication",
        "What was not measured",
        "VAE decode",
        "1.00 GiB",
    ):
        assert words in text, words


def test_page_shows_both_times_of_two_processes(store: ResultStore) -> None:
    page = page_of(full(store), store)
    source = (store.folder / "reports" / "index.html").read_text()
    assert "2 runs: 0.900, 0.918 s" in page.text
    assert re.search(r'<tr class="pale"><th scope="row">fragile', source)
    assert not re.search(r'<tr class="pale"><th scope="row">cache', source)


def test_page_is_self_contained(store: ResultStore) -> None:
    page = page_of(full(store), store)
    assert page.images
    assert all(image["src"].startswith("data:image/") for image in page.images)
    assert all(image["alt"] for image in page.images)
    assert not re.search(r"https?://|url\(|@import|<link|srcset|script src|fetch\(|XMLHttp|import\(", page.source)


def test_headings_do_not_skip_a_level(store: ResultStore) -> None:
    headings = page_of(full(store), store).headings
    assert headings.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(headings))


def test_page_shows_stored_pictures_pixel_for_pixel(store: ResultStore) -> None:
    stored = full(store)
    page = page_of(stored, store)
    inlined = [
        Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2])))
        for image in page.images
        if " of item " in image["alt"]
    ]
    colors = [image.convert("RGB").getpixel((5, 5)) for image in inlined[:4]]
    assert colors == [(255, 0, 0), (0, 0, 255), (0, 128, 128), (255, 215, 0)]


def test_large_pictures_are_scaled_down(store: ResultStore) -> None:
    digest = store.put_image(Image.effect_noise((1024, 768), 80).convert("RGB"))
    runs = [record("baseline", 0, [sample("a", 1.0, images=[digest]), sample("b", 1.0)])]
    page = page_of(result(runs), store)
    (source,) = [image["src"] for image in page.images if "baseline of item" in image["alt"]]
    assert Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).size == (512, 384)


def test_page_escapes_words_from_records(store: ResultStore) -> None:
    evil = '<script>alert(1)</script>"><img src=x onerror=alert(1)>'
    digest = store.put_image(Image.new("RGB", (8, 8)))
    items = [item("a").model_copy(update={"instruction": evil}), item("b")]
    runs = [
        record("baseline", 0, [sample("a", 1.0, images=[digest]), sample("b", 1.0)], environment={"cpu": evil}),
        record(evil, 0, status="crash", reason=evil, labels=(evil,)),
    ]
    page = page_of(result(runs, items), store)
    assert "<script>alert" not in page.source
    assert evil in page.text


def test_sections_without_content_vanish_and_are_listed_once(store: ResultStore) -> None:
    page = page_of(result([timed("baseline", 0, [1.0, 1.0])]), store)
    for section in ("quality", "sizes", "cost"):
        assert f'<section id="{section}">' not in page.source or section == "cost"
    assert page.text.count("What was not measured") == 1
    assert "the judge's acceptance of baseline" in page.text


def test_page_reports_missing_picture(store: ResultStore) -> None:
    stored = full(store)
    store.write(stored)
    store.image_path(stored.items[0].image or "").unlink()
    assert "the image file is missing" in Page(publish(store.folder).document).text


@pytest.mark.parametrize(
    "records",
    [
        [],
        [
            record(
                "baseline", 0, status="interrupted", reason="Interrupted by the user.", checkpoint=None, environment={}
            )
        ],
        [timed("cache", 0, [1.0, 1.0])],
    ],
)
def test_page_renders_for_any_records(store: ResultStore, records: list[object]) -> None:
    page = page_of(result(records), store)  # type: ignore[arg-type]
    assert "not measured" in page.text


def test_random_weights_have_no_image_quality(store: ResultStore) -> None:
    text = page_of(result([timed("baseline", 0, [1.0, 1.0], checkpoint=RANDOM)]), store).text
    assert "image quality is not measured" in text
    assert "11.9 B transformer parameters" in text


def test_leading_group_has_a_table_and_others_share_one(store: ResultStore) -> None:
    runs = [timed("baseline", 0, [1.0, 1.0]), timed("baseline", 1, [4.0, 4.0], of=workload(width=256, height=256))]
    source = page_of(result(runs), store).source
    others = source.index("1 other workload<")
    assert source.index('aria-label="Results: edit, 256x256, 4 steps"') < others
    assert others < source.index("<td>edit, 128x128, 4 steps</td>")


def test_stages_table_has_no_column_that_nobody_fills(store: ResultStore) -> None:
    def heads(*runs: Record) -> list[str]:
        table = page_of(result(runs), store).source.split('aria-label="Where the time goes', 1)[1].split("</thead>")[0]
        return re.findall(r"<th[^>]*>([^<]*)</th>", table)

    full = [timed("baseline", 0, [1.0, 1.0]), timed("compile", 0, [0.9, 0.9])]
    assert heads(*full)[-2:] == ["One full step", "Computed"]
    assert "One skipped step" in heads(*full, timed("cache", 0, [0.5, 0.5], skipped=2))


def test_differing_environment_facts_are_reported(store: ResultStore) -> None:
    runs = [
        timed(
            "baseline", r, [1.0, 1.0], environment={"cpu": "C", "gpu": None, "clock": f"{r} MHz", "flags": {"A": r % 2}}
        )
        for r in range(4)
    ]
    text = page_of(result(runs), store).text
    assert "4 different values, 0 MHz in the first run" in text
    assert "flags.A 0 / 1" in text


def test_gallery_picks_items_by_position() -> None:
    names = [f"i{number}" for number in range(30)]
    runs = [record("baseline", 0, [sample(n, 1.0, images=["0" * 64]) for n in names], of=workload(names))]
    (group,) = groups(result(runs, [item(name) for name in names]))
    shown = gallery(group, [item(name) for name in names])
    assert len(shown.cards) == MOST_ITEMS
    assert shown.items == 30
    assert [card.item.id for card in shown.cards][:3] == ["i0", "i2", "i5"]


def test_edits_with_all_pictures_stored_are_shown_first(store: ResultStore) -> None:
    there = store.put_image(Image.new("RGB", (8, 8)))
    cards = [
        GalleryItem(item(f"i{number}"), 0, (GalleryPicture("input", there if number in (5, 7) else "0" * 64, None),))
        for number in range(8)
    ]
    report = replace(report_of(full(store)), samples=Gallery(tuple(cards), 8))
    text = render(report, (), store)
    assert re.findall(r'class="soft small">item (i\d)', text)[-4:] == ["i5", "i7", "i0", "i1"]
    assert "4 of 8 edits" in text


def test_report_in_another_folder_leaves_records_unchanged(store: ResultStore, tmp_path: Path) -> None:
    store.write(full(store))
    before = {path: path.stat().st_mtime_ns for path in store.folder.rglob("*") if path.is_file()}
    out = tmp_path / "elsewhere"
    published = publish(store.records_file, out)
    assert published.document == out / "reports" / "index.html"
    pictures = {chart.path for chart in published.charts if chart.path is not None}
    assert pictures >= {out / "visualizations" / "performance" / f"{name}.png" for name in DRAWN}
    assert {path.stem for path in pictures}.isdisjoint(EMPTY)
    written = {path for path in out.rglob("*") if path.is_file()}
    assert written == {published.document, out / "results" / "samples.csv", *pictures}
    assert {path: path.stat().st_mtime_ns for path in store.folder.rglob("*") if path.is_file()} == before


def test_several_folders_are_one_report_in_a_folder_of_its_own(store: ResultStore, tmp_path: Path) -> None:
    """Images are found in whichever folder has them, and the same folder counts once."""
    store.write(full(store))
    other = ResultStore(tmp_path / "other")
    other.write(suite_records.ablation())
    folders = [other.folder, store.folder, store.records_file]
    with pytest.raises(InvalidInput, match="2 folders stands in none of them: add -o"):
        publish(folders)
    published = publish(folders, tmp_path / "both")
    runs = {record.run_id for record in published.report.result.records}
    assert runs == {record.run_id for folder in folders[:2] for record in ResultStore(folder).load().records}
    assert "the image file is missing" not in Page(published.document).text
    assert published.document == tmp_path / "both" / "reports" / "index.html"
    assert not (other.folder / "reports" / "index.html").exists()


def test_unwritable_folder_is_one_sentence(store: ResultStore, tmp_path: Path) -> None:
    store.write(full(store))
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match="choose another folder"):
        publish(store.folder, tmp_path / "file")


def test_same_records_give_the_same_page(store: ResultStore) -> None:
    store.write(full(store))
    page = publish(store.folder).document
    first = page.read_bytes()
    assert publish(store.folder).document.read_bytes() == first


def test_report_command_prints_table_and_json(store: ResultStore, capsys: pytest.CaptureFixture[str]) -> None:
    store.write(full(store))
    assert run(["report", str(store.folder), "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("cache" in line and "2.00x" in line for line in lines)
    assert any("compile: refused. There is no C++ compiler" in line for line in lines)
    answer = json.loads(lines[-1])
    assert Path(answer["page"]).is_file()
    charts = [Path(chart) for chart in answer["charts"]]
    assert set(charts) == set((store.folder / "visualizations").rglob("*.png"))
    assert [chart.stem for chart in charts if chart.stem in DRAWN] == list(DRAWN)


def test_report_command_error_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_report_does_not_import_torch(store: ResultStore) -> None:
    store.write(full(store))
    code = (
        "import sys; from pathlib import Path; from kontext_fast.report.output.publish import publish; "
        "publish(Path(sys.argv[1])); sys.exit('torch' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code, str(store.folder)], env=environment, check=False)
    assert done.returncode == 0
