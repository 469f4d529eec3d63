"""A Matplotlib figure as an SVG element of a web page: small, with alternative text, legible in light and in dark.

Every colour becomes a CSS variable with a second value for a dark page; text takes the fonts and the ink of the page;
element names are made unique, so that several pictures live in one file.
"""

from __future__ import annotations

import colorsys
import io
import re
from collections.abc import Iterable

import matplotlib as mpl
from markupsafe import escape
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from isometry.report.canvas import house_style
from isometry.spectrum.formatting import plain

_NOT_DRAWN = re.compile(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", re.DOTALL)
_COLOR = re.compile(r"#[0-9a-fA-F]{6}\b")
# Attributes of elements only: a name that is drawn as text may hold anything.
_TAG = re.compile(r"<[^<>]*>")
_NUMBER = re.compile(r"(-?\d+\.\d\d)\d+")
_FONT = re.compile(r"font: ((?:\w+ )*)([\d.]+px) [^;\"]*")
_FAMILY = re.compile(r"font-family: [^;\"]*;? ?")


def inline_svg(figure: Figure, *, name: str, title: str, description: str) -> str:
    """The figure as the text of one ``<svg>`` element.

    Parameters
    ----------
    figure : Figure
    name : str
        Letters and digits; begins the id of everything in it, and differs from picture to picture.
    title, description : str
        What a reader who does not see the picture is told.
    """
    buffer = io.StringIO()
    with house_style(), mpl.rc_context({"svg.fonttype": "none"}):
        for patch in (figure.patch, *(ax.patch for ax in figure.axes)):
            patch.set_facecolor("none")
        # Not savefig, which draws everything once before, to learn what constrained layout would need.
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    # Licence notes, comments and the style sheet, which would apply to the whole page, are removed.
    text = _NOT_DRAWN.sub("", text[text.index("<svg") :])
    box = re.search(r'viewBox="([^"]*)"', text)
    assert box is not None, "Matplotlib gives every picture its view box"
    body = text[text.index(">") + 1 :]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{box[1]}" '
        f'role="img" aria-labelledby="{name}-title {name}-desc">'
        f'<title id="{name}-title">{escape(plain(title))}</title>'
        f'<desc id="{name}-desc">{escape(plain(description))}</desc>'
    )
    body = _TAG.sub(lambda tag: _for_a_page(tag[0], name), body)
    # Line ends stand inside path data as well: one space will do.
    return head + re.sub(r"\s*\n\s*", " ", body)


def page_colors(pictures: Iterable[str]) -> list[tuple[str, str, str]]:
    """(variable, colour on a light page, colour on a dark page) of all that the pictures use, in order of name."""
    names = {found for picture in pictures for found in re.findall(r"var\(--x([0-9a-f]{6})\)", picture)}
    return [(f"--x{name}", f"#{name}", on_dark(name)) for name in sorted(names)]


def on_dark(color: str) -> str:
    """What a colour (six hexadecimal digits) becomes on a dark page, as #rrggbb.

    Greys are turned over, dark lines on white into light ones on black. Other colours keep their hue and are made
    light enough to be seen.
    """
    red, green, blue = (int(color[place : place + 2], 16) / 255 for place in (0, 2, 4))
    hue, lightness, saturation = colorsys.rgb_to_hls(red, green, blue)
    if max(red, green, blue) - min(red, green, blue) < 0.02:
        # From the page's own darkness, 0.13, to nearly white.
        lightness = 0.13 + 0.8 * (1 - lightness)
    else:
        lightness, saturation = max(lightness, 0.6), min(saturation, 0.85)
    return "#" + "".join(
        f"{round(255 * part):02x}" for part in colorsys.hls_to_rgb(hue, lightness, saturation)
    )


def _for_a_page(tag: str, name: str) -> str:
    """One tag with unique ids, colours as variables, and two decimals: a hundredth of a point is not seen."""
    if tag.startswith("<g "):
        # Nothing refers to a group.
        tag = re.sub(r' id="[^"]*"', "", tag)
    tag = re.sub(r'( id="|"#|url\(#)', lambda found: f"{found[1]}{name}-", tag)
    tag = _FONT.sub(r"font: \1\2 var(--sans)", tag)
    tag = _FAMILY.sub("", tag)
    tag = _COLOR.sub(lambda color: f"var(--x{color[0][1:].lower()})", tag)
    return _NUMBER.sub(r"\1", tag)
