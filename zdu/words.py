"""Words that people give a run on the command line. Apart from its records, so that nothing else has to be loaded."""

from enum import StrEnum


class Approve(StrEnum):
    """What somebody has to approve before it begins."""

    EACH = "each"  # every batch of steps
    PHASE = "phase"  # every phase
    NONE = "none"


class Word(StrEnum):
    """What people say to a run."""

    APPROVE = "approve"
    PAUSE = "pause"
    RESUME = "resume"
    ABORT = "abort"
