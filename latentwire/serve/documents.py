"""Text of documents: plain text and Markdown as they are, PDF and HTML through extractors.

read_document(Path("report.pdf"))
extract(data, "application/pdf", "an upload")
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

from latentwire.reading import read_regular
from latentwire.tasks.base import BOM, DataError, read_text

DOCUMENT_BYTES = 1 << 28
"""Largest file that is read."""
SUFFIXES = {
    ".pdf": "application/pdf",
    ".html": "text/html",
    ".htm": "text/html",
    ".xhtml": "text/html",
}
"""Media types by the end of a file's name; any other file is plain text."""
DROPPED = ("script", "style", "noscript", "template", "svg", "head")
"""Elements of HTML that hold no words for a reader."""


def read_document(path: Path) -> str:
    """A document's text; plain text may come from a pipe. Raises DataError for a file that is
    missing, a folder or a device, or of which no text comes out."""
    if media_type(path.name) == "text/plain":
        return read_text(path)
    try:
        data = read_regular(path, DOCUMENT_BYTES)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; expected a document") from None
    return extract(data, media_type(path.name), str(path))


def media_type(name: str) -> str:
    """The media type that a file's name says it has."""
    return SUFFIXES.get(Path(name).suffix.lower(), "text/plain")


def extract(data: bytes, media: str, name: str) -> str:
    """The text of a document's bytes. Raises DataError, which calls it by `name`, where the
    document is of another kind, is damaged, or holds no text."""
    kind = media.partition(";")[0].strip().lower()
    if kind not in EXTRACTORS:
        raise DataError(f"{name} is {kind!r}; expected one of {', '.join(EXTRACTORS)}")
    try:
        text = EXTRACTORS[kind](data)
    except ImportError as error:
        raise DataError(f"{name} needs {error.name}: pip install 'latentwire[docs]'") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name} is not UTF-8 (byte {error.start}); expected UTF-8 text, PDF or HTML"
        ) from None
    except Exception as error:  # extractors raise many kinds; a user needs the reason
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{name} cannot be read as {kind} ({reason})") from None
    if not text.strip():
        why = "; a scan needs character recognition first" if kind == SUFFIXES[".pdf"] else ""
        raise DataError(f"{name} holds no text{why}")
    return text


def _plain(data: bytes) -> str:
    return data.decode().removeprefix(BOM)


def _pdf(data: bytes) -> str:
    from pypdf import PdfReader

    pages = (page.extract_text() for page in PdfReader(io.BytesIO(data)).pages)
    # Glyphs without a Unicode value come out as half of a surrogate pair, which no file can hold.
    return "\n\n".join(pages).encode(errors="replace").decode()


def _html(data: bytes) -> str:
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(data, "html.parser")
    for element in soup(DROPPED):
        element.decompose()
    return soup.get_text("\n", strip=True)


EXTRACTORS: dict[str, Callable[[bytes], str]] = {
    "text/plain": _plain,
    "text/markdown": _plain,
    "application/pdf": _pdf,
    "text/html": _html,
}
