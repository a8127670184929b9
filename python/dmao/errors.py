"""The one exception that a user of the command line is meant to see, and how others become part of it."""


class UserError(Exception):
    """Something that the user can mend: a bad argument, a missing file, a full disk, a missing package.

    The message is one line that names what was expected, what was found and, where there is one, the way out.
    The command line prints it without a traceback; library code lets it pass.
    """


def reason(error: BaseException) -> str:
    """Why something failed, in one line: of the system's errors without the number, and without the file's name."""
    return getattr(error, "strerror", None) or first_line(error)


def first_line(error: BaseException) -> str:
    """The first line of an error's message; the name of its class where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def missing_package(error: ModuleNotFoundError) -> str | None:
    """What to install, in one line; None where a module of our own was not found, which is a defect."""
    package = (error.name or "").partition(".")[0]
    if package in ("", "dmao", "dmao_kernels"):
        return None
    return f"{package} is not installed: pip install 'dmao-kernels[recipes]'"
