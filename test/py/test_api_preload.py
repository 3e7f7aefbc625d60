# SPDX-License-Identifier: BSD-3-Clause
"""ENOMEM and ETIMEDOUT, in a process where allocations fail and time passes at once."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def preload(tmp_path_factory):
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no compiler for preload.c")
    if "LD_PRELOAD" in os.environ:
        pytest.skip("a sanitizer has its own allocator, and must come first")
    library = tmp_path_factory.mktemp("preload") / "preload.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-fno-builtin", "-o", library,
                    HERE / "preload.c"], check=True)
    return library


@pytest.mark.parametrize("module", ["out_of_memory", "out_of_time"])
def test_out_of(lib, library_path, preload, module):
    run = subprocess.run([sys.executable, "-m", f"vfiouser.api.{module}", library_path],
                         cwd=HERE, env={**os.environ, "LD_PRELOAD": str(preload)}, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    print(run.stdout)
    assert run.returncode == 0
