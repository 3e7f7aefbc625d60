# SPDX-License-Identifier: BSD-3-Clause
"""The shared library under test, loaded into this process."""

import ctypes
import os

from . import abi

FAILED = {abi.INT: lambda result: result == -1, abi.POINTER_OR_NULL: lambda result: not result,
          abi.OFFSET_OR_0: lambda result: result == 0, abi.NEVER: lambda result: False}


class Library:
    """
    Its functions by name. One that fails raises OSError with the errno; called holds the names of
    those that were called.
    """

    def __init__(self, path):
        self.called = set()
        self._functions = {}
        library = ctypes.CDLL(str(path), use_errno=True)
        for name, (kind, result, *args) in abi.PROTOTYPES.items():
            function = getattr(library, name)
            function.restype = result
            function.argtypes = args
            self._functions[name] = self._checked(name, function, FAILED[kind])

    def _checked(self, name, function, failed):
        def call(*args):
            self.called.add(name)
            ctypes.set_errno(0)
            result = function(*args)
            if failed(result):
                error = ctypes.get_errno()
                raise OSError(error, f"{name}: {os.strerror(error)}")
            return result
        return call

    def __getattr__(self, name):
        try:
            return self._functions[name]
        except KeyError:
            raise AttributeError(name) from None
