"""HTML and SVG from values: everything that is not markup of ours is escaped, and a page needs nothing but itself."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np

from thinkjepa_ros.files import write_atomically

from .style import STYLE

#: A page may show what is inside it and nothing else: no script runs and nothing is fetched, whatever a bag held.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_EMPTY = ("meta", "br", "hr", "img")


class Safe(str):
    """Markup that is ready; every other text is escaped before it becomes part of it."""

    __slots__ = ()


def safe(value: object) -> Safe:
    """Markup as it is, anything else as words: escaped, and without characters that a page may not hold."""
    if isinstance(value, Safe):
        return value
    words = "".join(c if c in "\n\t" or ord(c) >= 32 else "\N{REPLACEMENT CHARACTER}" for c in str(value))
    return Safe(html.escape(words))


def join(parts: Iterable[object], between: str = "") -> Safe:
    """All parts in a row; `between` is words."""
    return Safe(safe(between).join(safe(part) for part in parts))


def tag(name: str, /, *content: object, **attributes: object) -> Safe:
    """An element. Attributes: `cls` is class, "_" becomes "-"; None is left out."""
    words = "".join(
        f' {"class" if key == "cls" else key.replace("_", "-")}="{safe(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Safe(f"<{name}{words}>" if name in _EMPTY else f"<{name}{words}>{join(content)}</{name}>")


def said(words: object) -> Safe:
    """Words from outside (a thought, a name): kept apart, so that text from right to left turns nothing else around."""
    return tag("bdi", words)


def table(header: Sequence[object], rows: Iterable[Sequence[object]], caption: object = None) -> Safe:
    """A table in a box of its own, which scrolls where it is too wide; the first column stays in sight."""
    head = tag("thead", tag("tr", *(tag("th", cell, scope="col") for cell in header)))
    body = tag(
        "tbody",
        *(
            tag("tr", tag("th", first, scope="row"), *(tag("td", cell) for cell in cells))
            for first, *cells in (list(row) for row in rows)
        ),
    )
    above = [tag("p", caption, cls="caption")] if caption is not None else []
    return tag("div", *above, tag("div", tag("table", head, body), cls="scroll", tabindex="0"), cls="table")


def facts(pairs: Iterable[tuple[object, object]], whole: bool = False) -> Safe:
    """A list of names and what they are; whole: each in a line of its own."""
    kind = "facts whole" if whole else "facts"
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs), cls=kind)


def section(title: str, *content: object) -> Safe:
    return tag("section", tag("h2", title), *content)


def folded(title: object, *content: object) -> Safe:
    """What is shown only when asked for."""
    return tag("details", tag("summary", title), *content)


def picture(rgb: np.ndarray, alt: str, quality: int = 80) -> Safe:
    """An image (uint8 RGB [H, W, 3]) as JPEG inside the page."""
    done, data = cv2.imencode(".jpg", np.ascontiguousarray(rgb[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ValueError(f"an image of shape {rgb.shape} cannot be written as JPEG")
    inside = "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()
    return tag("img", src=inside, alt=alt, width=rgb.shape[1], height=rgb.shape[0], loading="lazy")


def write_page(path: Path, title: str, *content: object) -> None:
    """Write a whole page, or nothing. Raises OSError."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Safe(STYLE)),
    )
    text = "<!doctype html>\n" + tag("html", head, tag("body", tag("main", *content)), lang="en") + "\n"
    write_atomically(path, text.encode("utf-8", "replace"))
