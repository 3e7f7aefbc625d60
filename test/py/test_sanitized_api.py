# SPDX-License-Identifier: BSD-3-Clause
"""
The tests that load the library into their own process, once more with a sanitizer's runtime: that
must be there before everything else, so another interpreter has to be started for them.
"""

import os
import pathlib
import subprocess
import sys

import pytest

from vfiouser.api.fixtures import missing_runtime

HERE = pathlib.Path(__file__).resolve().parent
TIMEOUT = 1800


def test_api_tests(library_path):
    runtime = missing_runtime(library_path)
    if runtime is None:
        pytest.skip("the library needs no runtime that is not here")
    files = sorted(str(path) for path in HERE.glob("test_api_*.py"))
    # Python itself leaves memory behind.
    options = ":".join(filter(None, (os.environ.get("ASAN_OPTIONS"), "detect_leaks=0")))
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files], cwd=HERE,
        env={**os.environ, "LD_PRELOAD": runtime, "ASAN_OPTIONS": options}, timeout=TIMEOUT,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    print(run.stdout[-20000:])
    assert run.returncode == 0
