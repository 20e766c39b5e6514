"""The share of the machine that other work takes is read from the kernel's counters."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from optsched.runtime.busy import busy_cores


def test_a_spinning_process_is_noticed():
    if not os.path.exists("/proc/stat"):
        pytest.skip("no /proc/stat")
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as spinning:
        try:
            assert busy_cores(sample_s=0.4) > 0.3
        finally:
            spinning.kill()


@pytest.mark.parametrize("content", ["", "cpu", "intr 1 2 3 4 5 6", None])
def test_a_system_that_does_not_tell_gives_none(tmp_path, content):
    stat = tmp_path / "stat"
    if content is not None:
        stat.write_text(content)
    assert busy_cores(stat, sample_s=0.0) is None
