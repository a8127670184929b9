"""The one exception that a user of the command line is meant to see."""


class UserError(Exception):
    """Something that the user can mend: a bad argument, a missing file, a full disk, a missing package.

    The message is one line that names what was expected, what was found and, where there is one, the way out.
    The command line prints it without a traceback; library code lets it pass.
    """
