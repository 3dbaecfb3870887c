"""``python -m pyro_vae`` and the command ``pyro-vae``."""

import os
import sys


def main() -> None:
    """Run the command line; a user's mistake is one line and exit status 2."""
    from rich.console import Console
    from rich.text import Text

    from pyro_vae.cli import app
    from pyro_vae.errors import InputError
    from pyro_vae.training import TrainingError

    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        app(prog_name="pyro-vae")
    except InputError as error:
        errors.print(Text("error: ", style="bold red") + Text(str(error)))
        sys.exit(2)
    except TrainingError as error:
        errors.print(Text("error: ", style="bold red") + Text(str(error)))
        sys.exit(1)
    except KeyboardInterrupt:
        errors.print("interrupted")
        sys.exit(130)
    except BrokenPipeError:  # the reader of a pipe left early, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


if __name__ == "__main__":
    main()
