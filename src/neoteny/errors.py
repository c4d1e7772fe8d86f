"""The one exception that means: the user can mend this. The command line prints its message and exits with 2."""


class UsageError(Exception):
    """A mistake in what was asked for: an unknown name, a missing extra or data set, a bad value, a damaged file.

    The message is one line that says what was wrong, where, and what to do.
    """
