"""Writes the report of one run: a single HTML file that needs nothing else, and says in words what
the numbers show before it shows them.

It is made from the files of the run folder alone; what is missing there is named in the page.

    path = write_report(Path("runs/smollm2-4x"))
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from latentwire.files import write_whole
from latentwire.reading import shortened
from latentwire.report import seek, seek_page, sweep, sweep_page, tables, wire_page
from latentwire.report.folder import ReportError, expect, read_object, read_records
from latentwire.report.shell import config_section, whole_page


class Kind(NamedTuple):
    """Describes a kind of run: what its files hold, and the sections of its page."""

    results: dict[str, Any]
    records: dict[str, dict[str, Any]]
    sections: Callable[[str, dict[str, Any]], list[Markup]]


KINDS = {
    "wire": Kind(tables.RESULTS, wire_page.RECORDS, wire_page.wire_sections),
    "readers": Kind(tables.READERS, {}, wire_page.readers_sections),
    "seek": Kind(seek.RESULTS, seek_page.RECORDS, seek_page.seek_sections),
    "sweep": Kind(sweep.RESULTS, {}, sweep_page.sweep_sections),
}
"""By the "kind" that results.json names; that of a wire of one reader names none."""


def write_report(run: Path) -> Path:
    """Write RUN/report.html and return its path. Raises ReportError where the folder holds neither
    results nor a training log, or where a file in it is damaged."""
    source = run / "results.json"
    results = read_object(source)
    named = (results or {}).get("kind", "wire")
    kind = KINDS.get(str(named))
    if kind is None:
        raise ReportError(f"{source}: expected kind {', '.join(KINDS)}, got {shortened(named)}")
    if results is not None:
        expect(results, kind.results, str(source))
    found: dict[str, Any] = {"results.json": results}
    for file, shape in kind.records.items():
        found[file] = read_records(run / file, shape)
    found["config.json"] = config = read_object(run / "config.json")
    if results is None and not found.get("metrics.jsonl"):
        raise ReportError(f"{run}: expected results.json or metrics.jsonl, found neither")
    body = kind.sections(run.resolve().name, found)
    if config is not None:
        body.append(config_section(config))
    if absent := [file for file, held in found.items() if not held]:
        note = Markup('<p class="note">Not in this run folder, or empty: {}.</p>')
        body.append(note.format(", ".join(absent)))
    path = run / "report.html"
    write_whole(path, whole_page(f"{run.resolve().name}: latentwire report", body))
    return path
