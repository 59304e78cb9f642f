"""When a migration runs. Apart from the catalogue, so that the command line can name the phases without loading it."""

from enum import StrEnum


class Phase(StrEnum):
    """When a migration runs."""

    NON_BLOCKING = "non-blocking"  # at the end of stage, while the old release serves
    BLOCKING = "blocking"  # in activate, in the window, just before the flip
    CLEANUP = "cleanup"  # when the previous release is no longer a way back
