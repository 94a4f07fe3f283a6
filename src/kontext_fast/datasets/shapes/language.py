"""How edits and scenes are put into words.

Training and held-out wordings are two lists without a common template, so that a held-out instruction is a sentence
that training never produced; the words themselves are the same, since a model this small cannot learn synonyms
that it never saw.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from kontext_fast.datasets.shapes.edits import Edit
from kontext_fast.datasets.shapes.scene import Scene, Shape, pick


@dataclass(frozen=True)
class Wordings:
    training: tuple[str, ...]
    held_out: tuple[str, ...]


_PATTERN_WORDS = {
    "gradient": ("a gradient background", "a background with a gradient"),
    "stripes": ("a striped background", "a background with stripes"),
    "checks": ("a checkered background", "a background with checks"),
    "speckle": ("a speckled background", "a background with specks"),
}
_PLACE_WORDS = {
    "top": "the top",
    "bottom": "the bottom",
    "left": "the left",
    "right": "the right",
    "center": "the center",
}

TEMPLATES: Mapping[str, Wordings] = {
    "recolor": Wordings(
        (
            "make {shape} {color}",
            "change {shape} to {color}",
            "paint {shape} {color}",
            "color {shape} {color}",
            "recolor {shape} in {color}",
            "change the color of {shape} to {color}",
            "{shape} should be {color}",
            "i want {shape} to be {color}",
            "set the color of {shape} to {color}",
            "give {shape} a {color} color",
            "let {shape} become {color}",
            "turn the color of {shape} into {color}",
        ),
        (
            "turn {shape} {color}",
            "make the color of {shape} {color}",
            "i want the color of {shape} to be {color}",
            "recolor {shape} to {color}",
            "let {shape} be {color}",
        ),
    ),
    "remove": Wordings(
        (
            "remove {shape}",
            "delete {shape}",
            "erase {shape}",
            "take {shape} away",
            "get rid of {shape}",
            "{shape} should be gone",
            "i want {shape} to be removed",
            "remove {shape} from the picture",
            "erase {shape} from the image",
            "make {shape} disappear",
            "take {shape} out of the picture",
        ),
        (
            "delete {shape} from the picture",
            "take away {shape}",
            "{shape} should disappear",
            "i want {shape} to be gone",
            "let {shape} disappear",
        ),
    ),
    "move": Wordings(
        (
            "move {shape} to {place}",
            "put {shape} at {place}",
            "place {shape} at {place}",
            "shift {shape} to {place}",
            "{shape} should be at {place}",
            "i want {shape} at {place}",
            "bring {shape} to {place}",
            "move {shape} over to {place}",
            "set {shape} at {place} of the picture",
            "let {shape} go to {place}",
        ),
        (
            "put {shape} over to {place}",
            "{shape} should go to {place}",
            "i want {shape} to be at {place}",
            "shift {shape} over to {place} of the picture",
            "move {shape} to {place} of the image",
        ),
    ),
    "resize": Wordings(
        (
            "make {shape} {size}",
            "change the size of {shape} to {size}",
            "resize {shape} to {size}",
            "{shape} should be {size}",
            "i want {shape} to be {size}",
            "set the size of {shape} to {size}",
            "give {shape} a {size} size",
            "let {shape} become {size}",
            "scale {shape} to a {size} size",
        ),
        (
            "make the size of {shape} {size}",
            "let {shape} be {size}",
            "scale {shape} to {size}",
            "i want the size of {shape} to be {size}",
            "turn {shape} {size}",
        ),
    ),
    "replace": Wordings(
        (
            "replace {shape} with a {kind}",
            "change {shape} into a {kind}",
            "turn {shape} into a {kind}",
            "make {shape} a {kind}",
            "swap {shape} for a {kind}",
            "{shape} should be a {kind}",
            "i want a {kind} in place of {shape}",
            "put a {kind} in place of {shape}",
            "let {shape} become a {kind}",
            "i want {shape} to be a {kind}",
        ),
        (
            "swap {shape} with a {kind}",
            "make {shape} into a {kind}",
            "let {shape} be a {kind}",
            "{shape} should become a {kind}",
            "set a {kind} in place of {shape}",
        ),
    ),
    "background color": Wordings(
        (
            "make the background {color}",
            "change the background to {color}",
            "paint the background {color}",
            "set the background to plain {color}",
            "the background should be {color}",
            "i want a {color} background",
            "color the background {color}",
            "use a plain {color} background",
            "give the picture a {color} background",
            "turn the color of the background into {color}",
            "let the background become {color}",
        ),
        (
            "turn the background {color}",
            "make the color of the background {color}",
            "set the color of the background to {color}",
            "i want the background to be {color}",
            "let the background be plain {color}",
        ),
    ),
    "recolor freely": Wordings(
        (
            "give {shape} another color",
            "change the color of {shape}",
            "paint {shape} in another color",
            "make {shape} another color",
            "recolor {shape}",
            "{shape} should have another color",
            "i want {shape} in another color",
            "let {shape} have a new color",
            "give {shape} a new color",
            "change {shape} to some other color",
            "use some other color for {shape}",
        ),
        (
            "give {shape} some other color",
            "paint {shape} a new color",
            "{shape} should have a new color",
            "change {shape} to another color",
            "i want {shape} to have some other color",
        ),
    ),
    "add": Wordings(
        (
            "add a {new} somewhere",
            "put a {new} somewhere",
            "add a {new}",
            "place a {new} somewhere in the picture",
            "draw a {new} somewhere",
            "insert a {new}",
            "there should be a {new} too",
            "i want a {new} somewhere",
            "draw a {new} in a free place",
            "put a {new} in the picture",
            "add a new {new} to the image",
        ),
        (
            "insert a {new} somewhere",
            "place a {new} in the image",
            "draw a {new} in the picture too",
            "there should be a {new} somewhere",
            "add a {new} in a free place",
        ),
    ),
    "scatter": Wordings(
        (
            "scatter {dots}",
            "add {dots}",
            "sprinkle {dots} over the picture",
            "draw {dots} somewhere",
            "scatter {dots} over the image",
            "put {dots} in the picture",
            "i want {dots} somewhere",
            "place {dots} in the free places",
            "add {dots} to the image",
            "sprinkle {dots}",
        ),
        (
            "scatter {dots} over the picture",
            "sprinkle {dots} somewhere",
            "draw {dots} in the free places",
            "place {dots} over the image",
            "there should be {dots} in the picture",
        ),
    ),
    "background pattern": Wordings(
        (
            "{pattern}",
            "give the picture {pattern}",
            "use {pattern}",
            "i want {pattern}",
            "draw {pattern}",
            "change the background to {pattern}",
            "add {pattern}",
            "the picture should have {pattern}",
            "put in {pattern}",
            "make it {pattern}",
        ),
        (
            "give the image {pattern}",
            "turn the background into {pattern}",
            "the image should have {pattern}",
            "there should be {pattern}",
            "let the picture have {pattern}",
        ),
    ),
    "caption": Wordings(
        (
            "{shapes} on {ground}",
            "a picture of {shapes} on {ground}",
            "draw {shapes} on {ground}",
            "{shapes} over {ground}",
            "an image with {shapes} on {ground}",
            "{ground} with {shapes}",
            "i want {shapes} on {ground}",
        ),
        (
            "a picture with {shapes} on {ground}",
            "an image of {shapes} over {ground}",
            "there should be {shapes} on {ground}",
        ),
    ),
}
_OPENINGS = ("", "", "", "", "please ", "can you ", "could you ", "now ")
_HELD_OUT_OPENINGS = ("", "", "", "please ", "now please ")


def instruct(rng: np.random.Generator, edit: Edit, held_out: bool) -> str:
    """An instruction for `edit`, from the training or from the held-out wordings."""
    words = dict(edit.words)
    if "place" in words:
        words["place"] = _PLACE_WORDS.get(words["place"], f"the {words['place']}")
    if "pattern" in words:
        words["pattern"] = pick(rng, _PATTERN_WORDS[words["pattern"]])
    wordings = TEMPLATES[edit.kind]
    sentence = pick(rng, wordings.held_out if held_out else wordings.training).format(**words)
    return pick(rng, _HELD_OUT_OPENINGS if held_out else _OPENINGS) + _with_articles(sentence)


def _with_articles(sentence: str) -> str:
    """'a' becomes 'an' before a vowel."""
    return re.sub(r"\ba (?=[aeiou])", "an ", sentence)


def caption(rng: np.random.Generator, scene: Scene, held_out: bool) -> str:
    """A description of the whole scene, for text-to-image."""
    wordings = TEMPLATES["caption"]
    template = pick(rng, wordings.held_out if held_out else wordings.training)
    shapes = _listed([_described(shape) for shape in scene.shapes])
    return _with_articles(template.format(shapes=shapes, ground=_ground(scene)))


def _described(shape: Shape) -> str:
    place = shape.place
    return f"a {shape.size} {shape.color} {shape.kind} at {_PLACE_WORDS.get(place, 'the ' + place)}"


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _ground(scene: Scene) -> str:
    background = scene.background
    if background.pattern == "plain":
        return f"a plain {background.tint} background"
    article = _PATTERN_WORDS[background.pattern][0].removesuffix(" background")
    return f"{article} {background.tint} and {background.second_tint} background"
