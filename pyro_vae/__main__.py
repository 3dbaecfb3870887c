"""``python -m pyro_vae`` and the command ``pyro-vae``."""

import sys


def main() -> None:
    """Run the command line; a user's mistake is one line and exit status 2."""
    try:
        import typer

        from pyro_vae.cli import app
        from pyro_vae.errors import InputError
        from pyro_vae.training import TrainingError

        # Click's exception of a wrong command line; newer typers bring their own click.
        usage_error: type[Exception] = typer.BadParameter.__mro__[2]
        sys.exit(app(prog_name="pyro-vae", standalone_mode=False))
    except KeyboardInterrupt:  # first: during the imports the names below do not exist
        _print_error("interrupted")
        sys.exit(130)
    except InputError as error:
        _print_error(str(error))
        sys.exit(2)
    except TrainingError as error:
        _print_error(str(error))
        sys.exit(1)
    except usage_error as error:
        message = error.format_message()  # type: ignore[attr-defined]
        if message:  # empty where no command was given and the help was printed
            _print_error(f"{message} (see pyro-vae --help)")
        sys.exit(2)


def _print_error(message: str) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    line = " ".join(message.splitlines())
    console.print(Text("error: ", style="bold red") + Text(line))


if __name__ == "__main__":
    main()
