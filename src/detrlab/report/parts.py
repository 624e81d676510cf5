"""The parts that detrlab's interactive pages share: their style, and marks drawn over pictures."""

from importlib import resources

from detrlab.palette import PAGE, PAGE_ON_DARK, css


def text_of(name: str, room: str = "report") -> str:
    """A text file that lies in a room of the package."""
    return (resources.files(f"detrlab.{room}") / name).read_text(encoding="utf-8")


def stylesheet() -> str:
    """The style of the pages, with the palette's colours for light and dark screens."""
    style = text_of("page.css").replace("--LIGHT: 0;", css(PAGE))
    return style.replace("--DARK: 0;", css(PAGE_ON_DARK))


def marks() -> str:
    """The script that draws where a query looked."""
    return text_of("marks.js")
