"""The command `dmao`, also where what it needs is not installed: then it says so in one line."""

import sys

from dmao.errors import missing_package


def main() -> None:
    """Runs the command line."""
    try:
        from dmao.cli import main as command
    except ModuleNotFoundError as error:
        if (told := missing_package(error)) is None:
            raise
        print(f"dmao: error: {told}", file=sys.stderr)
        sys.exit(2)
    command(prog_name="dmao")


if __name__ == "__main__":
    main()
