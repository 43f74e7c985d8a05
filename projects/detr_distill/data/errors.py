"""The one error that a user's data or data settings can cause."""


class DataError(Exception):
    """Something is wrong with a dataset or with a setting that selects one.

    The message is for the person who started the program: it names the file or the config key, the value found and
    the remedy. Programs print it without a stack trace.
    """
