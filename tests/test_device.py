"""Models that are not where Python's numbers are: the tests of on_device.py."""

import subprocess
import sys
from pathlib import Path


def test_everything_runs_on_a_device_as_it_does_on_the_cpu():
    tests = Path(__file__).with_name("on_device.py")
    command = [sys.executable, "-m", "pytest", "-n0", "-p", "apart", str(tests)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tests.parent)
    assert done.returncode == 0, done.stdout + done.stderr
