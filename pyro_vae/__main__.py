"""``python -m pyro_vae`` and the command ``pyro-vae``."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


def main() -> None:
    """Run the command line; a user's mistake is one line and exit status 2."""
    try:
        with _quiet_interrupts():
            _main()
    except KeyboardInterrupt:
        sys.exit(130)


def _main() -> None:
    import typer

    from pyro_vae.cli import app
    from pyro_vae.errors import InputError

    # Click's exception of a wrong command line; newer typers bring their own click.
    usage_error: type[Exception] = typer.BadParameter.__mro__[2]
    try:
        sys.exit(app(prog_name="pyro-vae", standalone_mode=False))
    except InputError as error:
        _print_error(str(error))
        sys.exit(2)
    except usage_error as error:
        message = error.format_message()  # type: ignore[attr-defined]
        if message:  # empty where no command was given and the help was printed
            _print_error(f"{message} (see pyro-vae --help)")
        sys.exit(2)
    except ArithmeticError as error:
        from pyro_vae.training import TrainingError  # an ArithmeticError; its module takes torch

        if not isinstance(error, TrainingError):
            raise
        _print_error(str(error))
        sys.exit(1)


@contextmanager
def _quiet_interrupts() -> Iterator[None]:
    """Leave at once at Ctrl-C during an import: libraries make other errors of it there."""
    previous = signal.getsignal(signal.SIGINT)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or previous is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _interrupt(number: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os._exit(130)
        frame = frame.f_back
    raise KeyboardInterrupt


def _print_error(message: str) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    line = " ".join(message.splitlines())
    console.print(Text("error: ", style="bold red") + Text(line))


if __name__ == "__main__":
    main()
