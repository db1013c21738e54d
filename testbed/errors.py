"""The one error that a command turns into one line and exit status 2."""


class RequestError(ValueError):
    """What was asked for cannot be done; the message names the value and the way out, in one line."""
