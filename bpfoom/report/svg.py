# SPDX-License-Identifier: Apache-2.0
"""matplotlib's SVG, made fit to stand inside a page: no ids of its own, no style for all of it.

Text stays text in the page's font, colours become CSS variables, and numbers lose the digits that
nobody can see. Ids that a drawing refers to itself get a prefix, as a page holds many drawings.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree

from bpfoom.report import palette

_SVG = "http://www.w3.org/2000/svg"
_HREF = "{http://www.w3.org/1999/xlink}href"
_DROPPED = {f"{{{_SVG}}}style", f"{{{_SVG}}}metadata"}
_REFERENCE = re.compile(r"(?<=#)[\w.-]+")
_NUMBER = re.compile(r"-?\d+\.\d+")
_BOLD = re.compile(r"\b(bold|700)\b")
_SIZE = re.compile(r"\d+(\.\d+)?px")


def inline(drawing: str, prefix: str) -> str:
    """The ``<svg>`` element for a page; ``prefix`` is unique in it. It has no title of its own."""
    root = ElementTree.fromstring(drawing)
    for parent in root.iter():
        for child in [child for child in parent if child.tag in _DROPPED]:
            parent.remove(child)
    referred = _referred(root)
    for element in root.iter():
        _tidy(element, prefix, referred)
    view_box = root.get("viewBox", "")
    root.attrib.clear()
    root.set("viewBox", view_box)
    root.set("aria-hidden", "true")
    return palette.as_variables(ElementTree.tostring(root, encoding="unicode"))


def _referred(root: ElementTree.Element) -> set[str]:
    """The ids that something in the drawing points to."""
    values = [value for element in root.iter() for value in element.attrib.values()]
    pointing = [value for value in values if value.startswith(("#", "url(#"))]
    return {match[0] for value in pointing for match in [_REFERENCE.search(value)] if match}


def _tidy(element: ElementTree.Element, prefix: str, referred: set[str]) -> None:
    element.tag = element.tag.removeprefix(f"{{{_SVG}}}")  # as HTML has it
    if element.get("id") not in referred:
        element.attrib.pop("id", None)
    for name, value in list(element.attrib.items()):
        if name == "id":
            element.set(name, f"{prefix}-{value}")
        elif name == _HREF:
            del element.attrib[name]
            element.set("href", f"#{prefix}-{value.removeprefix('#')}")
        elif value.startswith("url(#"):
            element.set(name, value.replace("#", f"#{prefix}-", 1))
        elif name == "style":
            element.set(name, _styled(value))
        elif name in ("d", "transform", "x", "y", "width", "height"):
            element.set(name, _rounded(value))


def _styled(style: str) -> str:
    """The declarations without the font's family: the page has one."""
    kept = []
    for declaration in (part.strip() for part in style.split(";")):
        if declaration.startswith("font"):
            size = _SIZE.search(declaration)
            kept += [f"font-size: {size[0]}"] if size else []
            kept += ["font-weight: bold"] if _BOLD.search(declaration) else []
        elif declaration:
            kept.append(declaration)
    return "; ".join(kept)


def _rounded(numbers: str) -> str:
    def shorter(match: re.Match[str]) -> str:
        return f"{float(match[0]):.1f}".removesuffix(".0")

    return " ".join(_NUMBER.sub(shorter, numbers).split())
