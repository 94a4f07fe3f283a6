from __future__ import annotations

from kontext_fast.datasets.world import WorldItem, world


def test_every_item_can_be_asked_for_everything() -> None:
    items = [item for item in world(72, 0).items if isinstance(item, WorldItem)]
    assert [item.id for item in items] == sorted(item.id for item in items)
    assert any(not item.shapes.edit.target.shapes for item in items), "removing the only shape is among them"
    for item in items:
        assert item.image.size == item.target.size == (128, 128)
        assert item.mask is None
        assert item.input_caption
        empty = item.open or not item.shapes.edit.target.shapes
        assert (item.output_caption is None) == empty
        assert item.output_caption is None or item.output_caption != item.input_caption


def test_more_items_extend_an_earlier_choice() -> None:
    assert {item.id for item in world(10, 3).items} < {item.id for item in world(20, 3).items}
    assert not {item.id for item in world(10, 3).items} & {item.id for item in world(10, 4).items}
