"""From a figure of matplotlib to a small SVG for a page: colours as CSS variables, text as text, tips on its parts.

Matplotlib's own SVG repeats its styles and hashes on every element and knows one colour scheme. Here only the shapes
and words remain, each colour of the palette becomes a variable, so that a page in the dark scheme draws it in other
colours, and what was marked with `tip` carries its words as a title.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import Any, Final
from xml.etree import ElementTree as etree
from xml.sax.saxutils import escape, quoteattr

_SVG: Final = "{http://www.w3.org/2000/svg}"
_HREF: Final = "{http://www.w3.org/1999/xlink}href"
_NUMBER = re.compile(r"-?\d+\.?\d*(?:e-?\d+)?")
_NO_TURN = re.compile(r"rotate\(-?0 [^)]*\)")
_KEPT: Final = ("fill", "stroke", "stroke-width", "stroke-dasharray", "opacity", "fill-opacity", "stroke-opacity")
_TEXT: Final = ("font-size", "font-weight", "font-style", "text-anchor")
_DEFAULTS: Final = {"stroke-width": "1", "font-weight": "normal", "font-style": "normal", "text-anchor": "start"}
_MARK, _FIELD = "tip", "\x1f"


def tip(artist: Any, words: str, preset: str = "") -> None:
    """Mark a part of a figure: an SVG shows `words` where a reader points. `preset` is whose records are behind."""
    artist.set_gid(_FIELD.join((_MARK, preset, words)).replace(_FIELD, "|"))


def inline_svg(figure: Any, label: str, variables: Mapping[str, str], kind: str = "") -> str:
    """`figure` as one `<svg>` element, whose name for those who hear it is `label`.

    `variables` has the CSS variable of every colour of the palette, `#0072b2` to `ours`. `kind` becomes its class.
    """
    width, height = figure.get_figwidth() * 72, figure.get_figheight() * 72
    body = _Writer(_parsed(figure), variables).body()
    box = f"0 0 {_short(width)} {_short(height)}"
    head = f'<svg class="plot {kind}" viewBox="{box}" role="img" aria-label={_quoted(label)}>'
    return f"{head}{body}</svg>"


def standalone_svg(figure: Any, label: str, colours: Mapping[str, str]) -> str:
    """`figure` as a file: `colours` has what stands for every colour of the palette, `#0072b2` to `#56b4e9`."""
    width, height = figure.get_figwidth() * 72, figure.get_figheight() * 72
    body = _Writer(_parsed(figure), colours, literal=True).body()
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_short(width)} {_short(height)}" '
        f'width="{_short(width)}" height="{_short(height)}" role="img" aria-label={_quoted(label)} '
        'font-family="system-ui, -apple-system, Segoe UI, Roboto, Helvetica, Arial, sans-serif">'
        f"<title>{escape(label)}</title>{body}</svg>\n"
    )


def _parsed(figure: Any) -> etree.Element:
    from matplotlib import rc_context

    content = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "kontext-fast"}):
        figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None})
    # What matplotlib has just written, from words that it escaped.
    return etree.fromstring(content.getvalue())


class _Writer:
    """Writes the shapes and words of a parsed figure; `colours` is what becomes of each colour."""

    def __init__(self, root: etree.Element, colours: Mapping[str, str], *, literal: bool = False) -> None:
        self._root, self._colours, self._literal = root, colours, literal
        self._shapes = {path.get("id"): path for path in root.iter(f"{_SVG}path") if path.get("id")}
        self._clips = {clip.get("id"): next(iter(clip.iter(f"{_SVG}rect"))) for clip in root.iter(f"{_SVG}clipPath")}

    def body(self) -> str:
        figure = next(group for group in self._root if group.tag == f"{_SVG}g")
        return "".join(map(self._element, figure))

    def _element(self, node: etree.Element) -> str:
        name = node.tag.removeprefix(_SVG)
        if name == "g":
            return self._group(node)
        if name == "path":
            return self._path(node)
        if name == "use":
            return self._use(node)
        return self._words(node) if name == "text" else ""

    def _group(self, node: etree.Element) -> str:
        inside = "".join(map(self._element, node))
        mark, _, rest = (node.get("id") or "").partition("|")
        if mark != _MARK or not inside:
            return inside
        preset, _, words = rest.partition("|")
        attribute = f" data-preset={quoteattr(preset)}" if preset else ""
        return f'<g class="tip"{attribute}><title>{escape(words)}</title>{inside}</g>'

    def _path(self, node: etree.Element) -> str:
        steps, style = _compact(node.get("d") or ""), _style(node)
        attributes = self._attributes(style)
        if not steps or not attributes:
            return ""
        cut = self._clipped(node, steps)
        return f'<path d="{steps}"{attributes}/>' if cut is None else self._cut(f'<path d="{steps}"{attributes}/>', cut)

    def _cut(self, shape: str, box: tuple[float, float, float, float]) -> str:
        x, y, width, height = box
        place = f'x="{_short(x)}" y="{_short(y)}" width="{_short(width)}" height="{_short(height)}"'
        return f'<svg {place} viewBox="{_short(x)} {_short(y)} {_short(width)} {_short(height)}">{shape}</svg>'

    def _clipped(self, node: etree.Element, steps: str) -> tuple[float, float, float, float] | None:
        """The box that cuts the shape, None where all of it lies inside."""
        reference = re.search(r"#([^)]+)\)", node.get("clip-path") or "")
        rect = self._clips.get(reference.group(1)) if reference else None
        if rect is None:
            return None
        x, y, width, height = (float(rect.get(name) or 0) for name in ("x", "y", "width", "height"))
        numbers = list(map(float, _NUMBER.findall(steps)))
        across, down = numbers[::2], numbers[1::2]
        inside = (
            min(across) >= x - 1 and max(across) <= x + width + 1 and min(down) >= y - 1 and max(down) <= y + height + 1
        )
        return None if inside else (x, y, width, height)

    def _use(self, node: etree.Element) -> str:
        shape = self._shapes[(node.get(_HREF) or "").removeprefix("#")]
        attributes = self._attributes(_style(shape) | _style(node))
        x, y, steps = float(node.get("x") or 0), float(node.get("y") or 0), _compact(shape.get("d") or "")
        if not attributes:
            return ""
        if steps.count("C") == 8:  # matplotlib's round marker
            radius = max(map(float, _NUMBER.findall(steps)))
            return f'<circle cx="{_short(x)}" cy="{_short(y)}" r="{_short(radius)}"{attributes}/>'
        return f'<path transform="translate({_short(x)} {_short(y)})" d="{steps}"{attributes}/>'

    def _words(self, node: etree.Element) -> str:
        style = _style(node)
        written = {name: style[name].removesuffix("px") for name in _TEXT if name in style}
        attributes = "".join(f' {name}="{value}"' for name, value in written.items() if value != _DEFAULTS.get(name))
        colour = self._colour(style.get("fill", "#000000"))
        turn = node.get("transform") or ""
        turned = "" if not turn or _NO_TURN.fullmatch(turn) else f' transform="{turn}"'
        x, y = (_short(float(node.get(name) or 0)) for name in ("x", "y"))
        words = escape("".join(node.itertext()))
        return f'<text x="{x}" y="{y}" fill="{colour}"{attributes}{turned}>{words}</text>' if words.strip() else ""

    def _attributes(self, style: Mapping[str, str]) -> str:
        """Empty for what cannot be seen."""
        shown = {name: style[name].removesuffix("px") for name in _KEPT if name in style}
        shown.setdefault("fill", "#000000")
        if shown.get("stroke", "none") == "none":
            shown = {name: value for name, value in shown.items() if not name.startswith("stroke")}
        if shown["fill"] == "none" and "stroke" not in shown:
            return ""
        for name in ("fill", "stroke"):
            if name in shown:
                shown[name] = self._colour(shown[name])
        return "".join(f' {name}="{value}"' for name, value in shown.items() if value != _DEFAULTS.get(name))

    def _colour(self, colour: str) -> str:
        known = self._colours.get(colour.lower())
        if known is None:
            return colour
        return known if self._literal or known == "none" else f"var(--{known})"


def _style(node: etree.Element) -> dict[str, str]:
    pairs = (part.partition(":") for part in (node.get("style") or "").split(";"))
    return {name.strip(): value.strip() for name, _, value in pairs if name.strip()}


def _compact(steps: str) -> str:
    """Coordinates to a tenth of a point."""
    words = " ".join(steps.split())
    return re.sub(r" ?([MLCQz]) ?", r"\1", _NUMBER.sub(lambda number: _short(float(number.group())), words))


def _short(value: float) -> str:
    return (
        f"{value:.1f}".removesuffix(".0").replace("-0", "0") if abs(value) < 0.05 else f"{value:.1f}".removesuffix(".0")
    )


def _quoted(text: str) -> str:
    return quoteattr(" ".join(text.split()))
