"""The one exception that a user's mistake raises."""


class UserError(Exception):
    """A mistake in a command, config or input file, told in one sentence.

    The command lines print the message without a traceback and exit with status 1.
    """
