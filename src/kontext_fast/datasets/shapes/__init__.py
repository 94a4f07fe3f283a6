"""A synthetic world of shapes: scenes, edits in words, and a judge that knows every right answer."""

from kontext_fast.datasets.shapes.dataset import ShapesItem, held_out, held_out_captions, held_out_dataset

__all__ = ["ShapesItem", "held_out", "held_out_captions", "held_out_dataset"]
