"""A run folder has one owner at a time, a killed one leaves no lock, and its children end too."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from latentwire.files import first_of, owned, write_whole

OWNER = """
import sys, time
from pathlib import Path
from latentwire.files import owned

with owned(Path(sys.argv[1])):
    (Path(sys.argv[1]) / "results.json.123.part").write_text("half")
    print("owned", flush=True)
    time.sleep(600)
"""
SWEEP = """
import jobs, pathlib, sys
from latentwire.runs.workers import run_isolated

list(run_isolated(jobs.hold, {"member": (pathlib.Path(sys.argv[1]),)}, None))
"""


@pytest.fixture
def started():
    """Starts Python processes, of which none is left."""
    processes: list[subprocess.Popen] = []

    def start(code: str, *arguments: str) -> subprocess.Popen:
        path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
        env = {**os.environ, "PYTHONPATH": path}
        command = [sys.executable, "-c", code, *arguments]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def owner(started, tmp_path):
    """A process that owns tmp_path/run."""
    process = started(OWNER, str(tmp_path / "run"))
    assert process.stdout.readline() == "owned\n"
    return process


def take(folder: Path) -> None:
    with owned(folder):
        pass


def test_a_folder_has_one_owner_until_that_is_killed(owner, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(ValueError, match=r"run is in use by another process; wait until that ends"):
        take(run)
    assert (run / "results.json.123.part").exists()  # it may be just about to move it
    owner.send_signal(signal.SIGKILL)
    assert owner.wait() == -signal.SIGKILL
    with owned(run):
        assert not list(run.glob("*.part"))
        take(run)  # an owner's own parts take it again
        with ThreadPoolExecutor(1) as pool, pytest.raises(ValueError, match="in use"):
            pool.submit(take, run).result()
    take(run)


def test_a_folder_to_which_nothing_was_written_is_gone_again(tmp_path):
    take(tmp_path / "runs" / "a")
    assert not (tmp_path / "runs").exists()
    with owned(tmp_path / "runs" / "a"):
        (tmp_path / "runs" / "a" / "kept").write_text("")
    assert (tmp_path / "runs" / "a" / "kept").exists()
    take(None)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file/run cannot be written \(Not a directory\)"):
        take(tmp_path / "file" / "run")


def test_a_member_of_a_killed_sweep_ends_with_it(started, tmp_path):
    sweep = started(SWEEP, str(tmp_path / "member"))
    while not (tmp_path / "member" / "began").exists():
        assert sweep.poll() is None
        time.sleep(0.05)
    with pytest.raises(ValueError, match="in use"):
        take(tmp_path / "member")
    sweep.send_signal(signal.SIGKILL)
    assert sweep.wait() == -signal.SIGKILL
    for _ in range(200):  # jobs.hold would hold it for a minute
        try:
            return take(tmp_path / "member")
        except ValueError:
            time.sleep(0.1)
    pytest.fail("the member lives on")


def test_two_writers_of_one_file_do_not_take_each_others_parts(tmp_path, monkeypatch):
    together, texts, move = Barrier(2, timeout=30), ["a" * 1000, "b" * 1000], Path.replace

    def replace(part: Path, whole: Path) -> Path:
        together.wait()  # both are written before either is moved
        return move(part, whole)

    monkeypatch.setattr(Path, "replace", replace)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write_whole, [tmp_path / "config.json"] * 2, texts))
    assert (tmp_path / "config.json").read_text() in texts
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_of_rows_with_one_key_the_first_counts():
    rows = [{"id": i, "place": n} for n, i in enumerate("abcbad")]
    assert [r["place"] for r in first_of(rows, lambda r: r["id"]).values()] == [0, 1, 2, 5]
