"""The command line, run in the process of a test."""

__all__ = ["Result", "invoke", "succeed", "refuse", "heeding_ctrl_c"]

import contextlib
import io
import signal
import sys
from typing import NamedTuple

from pyro_vae.__main__ import main


@contextlib.contextmanager
def heeding_ctrl_c():
    """Processes started in here heed Ctrl-C, though this one be a background job of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Result(NamedTuple):
    status: int
    out: str
    err: str


def invoke(*arguments, cwd) -> Result:
    """Run the command in this process; a subprocess would spend seconds on imports."""
    out, err, status, argv = io.StringIO(), io.StringIO(), 0, sys.argv
    sys.argv = ["pyro-vae", *map(str, arguments)]
    try:
        with (
            contextlib.chdir(cwd),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            main()
    except SystemExit as error:
        status = error.code or 0
    finally:
        sys.argv = argv
    return Result(status, out.getvalue(), err.getvalue())


def succeed(*arguments, cwd) -> str:
    """Exit status 0 and nothing on stderr; returns what was printed."""
    result = invoke(*arguments, cwd=cwd)
    assert (result.status, result.err) == (0, ""), result
    return result.out


def refuse(*arguments, cwd) -> str:
    """One line on stderr, nothing on stdout, exit status 2; returns the line."""
    result = invoke(*arguments, cwd=cwd)
    assert (result.status, result.out) == (2, ""), result
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1, result.err
    return result.err
