"""HTML and SVG elements as text. Pure.

All text is escaped when an element is built: names of runs and lines of logs come from programs,
and a report is opened in browsers of people who trust it. Only :class:`Markup` passes
unchanged, and only this module and constants of the page make it.
"""

from __future__ import annotations

import html
from collections.abc import Iterable

from orchestrator.core.text import visible

_VOID = frozenset({"meta", "br", "hr", "line", "rect", "path", "polygon", "circle"})
"""Elements that are written without content, if there is none."""


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


Child = object
"""Text (escaped), markup, None (left out), or an iterable of these."""


def element(tag: str, *children: Child, **attributes: object) -> Markup:
    """An element.

    Args:
        tag: Such as `td`.
        children: Its content, in order.
        attributes: `class_` stands for `class`, and `_` for `-`; None and False are left out, and
            True stands for an attribute without a value.
    """
    begin = f"<{tag}{''.join(_attribute(key, value) for key, value in attributes.items())}"
    content = joined(children)
    if not content and tag in _VOID:
        return Markup(f"{begin}>" if tag in {"meta", "br", "hr"} else f"{begin}/>")
    return Markup(f"{begin}>{content}</{tag}>")


def joined(children: Iterable[Child]) -> Markup:
    """Children one after the other."""
    return Markup("".join(map(_rendered, children)))


def _rendered(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, Iterable) and not isinstance(child, str):
        return joined(child)
    return html.escape(visible(str(child)), quote=False)


def _attribute(key: str, value: object) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    if value is True:
        return f" {name}"
    text = f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)
    return f' {name}="{html.escape(visible(text))}"'
