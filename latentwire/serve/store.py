"""A store: a folder of messages, one file each, that are made once and asked many times.

    store = Store(Path("papers"))
    store.add(wire, {"a.txt": "The lighthouse was finished in 1759.", "b.txt": "..."})
    entry = store.entry("a.txt")          # wire, ratio, digest of the source, tokens, bytes
    store.message(wire, entry)            # what send gave, in any process

A file begins with one line of JSON, the entry, and goes on with the message's bytes. One file is
one document, so that a kill or a full disk leaves the old one or the new one whole, and writers of
other documents never meet. The entry holds the digest of the message, and the line before it the
digest of the entry: nothing is answered from a file that was altered.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from latentwire.artifact import one_error, typed
from latentwire.files import digest, write_whole
from latentwire.reading import check_unicode, parse_json, read_regular, shortened
from latentwire.wire.codes.message import CodeMessage
from latentwire.wire.codes.wire import CodeWire
from latentwire.wire.folder import WireError
from latentwire.wire.load import AnyWire
from latentwire.wire.message import Message
from latentwire.wire.text_message import TextMessage
from latentwire.wire.text_wire import TextWire
from latentwire.wire.wire import Wire

SUFFIX, MAGIC = ".context", b"latentwire context 1"
ENTRY_BYTES = 1 << 16
"""Longest entry."""
ID = re.compile("[0-9a-f]{16}")
TOGETHER = 16_000
"""Characters of documents that are compressed in one call, and again where it is interrupted; a
longer document is compressed alone."""
ABANDONED = 3600.0
"""Seconds after which a file that was not moved into place is one of a writer that was killed."""


class StoreError(ValueError):
    """A store or a context in it cannot be used. One line: what, expected, got, what to do."""


class UnknownContextError(StoreError):
    """No context has that name."""


@dataclass(frozen=True)
class Entry:
    """One context as a store's index has it."""

    name: str
    """The document is asked for by it."""
    wire: str
    """The wire that made the message: its id as hex digits."""
    settings: str
    """Properties of the wire that the message follows from: bits, verbatim spans, selector."""
    ratio: int
    source: str
    """Digest of the document's text."""
    tokens: int
    """Tokens of the text, as the first reader counts them."""
    latents: int
    """Slots of a head, on average, that the first reader sees."""
    bytes: int
    """Length of the message."""
    message: str
    """SHA-256 of the message."""

    @property
    def id(self) -> str:
        """A short name of fixed form, by which the file is called."""
        return id_of(self.name)


def id_of(name: str) -> str:
    """The id of the context of this name."""
    return digest(name.encode(errors="surrogatepass"))


def wire_id(wire: AnyWire) -> str:
    """The hex digits by which a store says which wires read a message: of one without training,
    those of its reader too. Raises WireError for a wire of learned codes, which are no slots of
    single heads and cannot be read together."""
    if isinstance(wire, TextWire):
        return wire.code.lm.fingerprint
    if isinstance(wire, Wire) and not any(x.numel() for x in wire.state_dict().values()):
        return wire.id.hex() + wire.lm.fingerprint
    if isinstance(wire, Wire | CodeWire):
        return wire.id.hex()
    raise WireError("a wire of learned codes has no store; expected one such as default, shared")


class Store:
    """A folder of contexts. Any number of processes may read and write it at the same time."""

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise StoreError(f"{self.folder} is no folder; expected a store's")

    def add(
        self, wire: AnyWire, texts: Mapping[str, str], bits: int | None = None
    ) -> Iterator[Entry]:
        """Compress texts, given by their names, and keep each before the next ones are begun; the
        entries one after another. Whoever stops half-way keeps what came out.

        bits: of one code of a message of a wire of one reader. Raises WireError for a text that the
        wire cannot hold, and OSError where the folder cannot be written.
        """
        for name in texts:
            check_unicode(name)
        names, reader = list(texts), _first(wire)
        bits = bits or reader.bits
        reader.check_bits(bits)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._tidy()
        for some in in_groups(names, [len(text) for text in texts.values()]):
            messages = reader.send([texts[name] for name in some], bits)
            for name, message in zip(some, messages, strict=True):
                yield self._write(wire, name, texts[name], message.to_bytes(), bits)

    def fresh(self, wire: AnyWire, name: str, text: str, bits: int | None = None) -> bool:
        """True where the store holds this text under this name, whole and as this wire makes it."""
        try:
            entry, data = self._read(id_of(name))
            self._check(entry, data)
        except StoreError:
            return False
        made = (entry.wire, entry.ratio, entry.settings)
        return entry.source == digest(text) and made == _made(wire, bits)

    def entry(self, name: str) -> Entry:
        """The entry of a context by its name, its id, or the end of a path that only one name has.
        Raises UnknownContextError where there is none, StoreError where its file was altered."""
        for candidate in (id_of(name), name):
            if ID.fullmatch(candidate) and self._path(candidate).exists():
                return self._read(candidate, whole=False)[0]
        entries, _ = self.entries()
        ends = [e for e in entries if e.name.endswith(f"/{name}")]
        if len(ends) == 1:
            return ends[0]
        if ends:
            raise UnknownContextError(
                f"{shortened(name)} is the end of {len(ends)} names in {self.folder}: "
                f"{', '.join(e.name for e in ends[:4])}; give one whole"
            )
        listed = ", ".join(e.name for e in entries[:8]) or "nothing"
        raise UnknownContextError(f"no context {shortened(name)} in {self.folder}; it has {listed}")

    def entries(self) -> tuple[list[Entry], list[str]]:
        """All entries by name, and what is wrong with each file whose entry was altered. Messages
        are not looked at."""
        found, damaged = [], []
        for path in self.folder.glob(f"*{SUFFIX}"):
            try:
                found.append(self._read(path.stem, whole=False)[0])
            except UnknownContextError:  # deleted meanwhile
                continue
            except StoreError as error:
                damaged.append(str(error))
        return sorted(found, key=lambda entry: entry.name), sorted(damaged)

    def message(self, wire: AnyWire, entry: Entry) -> Message | TextMessage | CodeMessage:
        """The message of an entry. Raises StoreError where it was altered, or where another wire
        made it; UnknownContextError where it is gone."""
        if entry.wire != (ours := wire_id(wire)):
            raise StoreError(
                f"{entry.name} was compressed by wire {entry.wire}; this is wire {ours}: name that "
                "wire, or compress the document again"
            )
        entry, data = self._read(entry.id)
        self._check(entry, data)
        with one_error(StoreError, f"{entry.name} in {self.folder}"):
            return _first(wire).message_type.from_bytes(data)

    def remove(self, entry: Entry) -> None:
        """Remove a context; one that is gone already is no mistake."""
        self._path(entry.id).unlink(missing_ok=True)

    def _tidy(self) -> None:
        """Remove what killed writers left."""
        for part in self.folder.glob("*.part"):
            with suppress(FileNotFoundError):  # one that is in place by now
                if time.time() - part.stat().st_mtime > ABANDONED:
                    part.unlink()

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{SUFFIX}"

    def _write(self, wire: AnyWire, name: str, text: str, data: bytes, bits: int | None) -> Entry:
        reader, (made, ratio, settings) = _first(wire), _made(wire, bits)
        counts = len(reader.lm.tokenize(text, remember=False)), reader.latents(text), len(data)
        sha256 = hashlib.sha256(data).hexdigest()
        entry = Entry(name, made, settings, ratio, digest(text), *counts, sha256)
        line = json.dumps(asdict(entry)).encode()
        if len(line) > ENTRY_BYTES // 2:
            raise StoreError(f"the name {shortened(name)} is too long")
        seal = hashlib.sha256(line).hexdigest().encode()
        write_whole(self._path(entry.id), b"\n".join([MAGIC, seal, line, data]))
        return entry

    def _read(self, key: str, whole: bool = True) -> tuple[Entry, bytes]:
        """An entry and the bytes behind it. Raises StoreError where the entry was altered."""
        path = self._path(key)
        try:
            if whole:
                data = read_regular(path)
            else:
                with path.open("rb") as file:
                    data = file.read(ENTRY_BYTES)
        except FileNotFoundError:
            raise UnknownContextError(f"no context {key} in {self.folder}") from None
        except OSError as error:
            raise StoreError(f"{path} cannot be read ({error.strerror})") from None
        magic, seal, line, rest = [*data.split(b"\n", 3), b"", b"", b""][:4]
        if magic != MAGIC or hashlib.sha256(line).hexdigest().encode() != seal:
            raise StoreError(f"{path} was altered or cut off; compress its document again")
        with one_error(StoreError, path):
            entry = typed(Entry, parse_json(line))
        if entry.id != key:
            raise StoreError(f"{path} holds {shortened(entry.name)}, which belongs to {entry.id}")
        return entry, rest

    def _check(self, entry: Entry, data: bytes) -> None:
        if hashlib.sha256(data).hexdigest() != entry.message:
            raise StoreError(
                f"{entry.name} in {self.folder} was altered; compress the document again"
            )


def in_groups(names: Sequence[str], sizes: Sequence[int]) -> Iterator[list[str]]:
    """Names in order, in groups of at most TOGETHER characters, or of one document."""
    group, held = [], 0
    for name, size in zip(names, sizes, strict=True):
        if group and held + size > TOGETHER:
            yield group
            group, held = [], 0
        group.append(name)
        held += size
    if group:
        yield group


def _first(wire: AnyWire) -> Any:
    """The reader that counts what an entry says."""
    return wire.readers[0]


def _made(wire: AnyWire, bits: int | None) -> tuple[str, int, str]:
    """Wire, ratio and settings as entries have them."""
    reader = _first(wire)
    settings = {"bits": bits or reader.bits, "keep": reader.keep}
    if isinstance(reader, Wire):
        settings["selector"] = reader.config.selector
        if reader.compressor.uniform:
            settings["uniform"] = True
    return wire_id(wire), reader.ratio, json.dumps(settings)
