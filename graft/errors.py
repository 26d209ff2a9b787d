"""What can go wrong, as sentences for the person in front of the screen.

    GraftError
    ├── DatasetError      the images, their folders or their labels
    ├── BackboneError     a network or its weights
    ├── SettingsError     an option or a combination of options
    ├── RunError          a run folder
    ├── BundleError       a packed model
    └── StoreError        the cache on disk

Every message says what is wrong, where, and what to do next. The command line prints it without a traceback and
exits with code 2; anything else that escapes is a bug in Graft.
"""


class GraftError(Exception):
    """The root: `str(error)` is a complete sentence for the user."""


class DatasetError(GraftError):
    """The images, their folders or their labels do not make a task."""


class BackboneError(GraftError):
    """A network is unknown, its weights cannot be had, or they do not fit."""


class SettingsError(GraftError):
    """An option has a value that it cannot have."""


class RunError(GraftError):
    """A run folder belongs to something else or is in use."""


class BundleError(GraftError):
    """A packed model is missing, damaged, altered or too new."""


class StoreError(GraftError):
    """The cache cannot be written or read."""


MEMORY_RAN_OUT = "Memory ran out. Ask for less at a time (--backbones, a smaller --size or --batch-size), or, on a card, --device cpu."


def memory_ran_out(error: BaseException) -> bool:
    """Whether this is how Python, torch or a runtime says that there is not enough memory."""
    said = str(error).lower()
    told = ("out of memory", "allocate memory", "not enough memory", "bad_alloc", "bad allocation")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in said for words in told)
    )
