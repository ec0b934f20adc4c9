"""Every error the study raises on purpose, a line each; the message holds value, rule and next step."""


class StudyError(Exception):
    """Something the person at the keyboard can mend; the message says how."""


class BadParameter(StudyError):
    """A parameter has an unknown name, a wrong type or a value that is not allowed."""


class MissingInput(StudyError):
    """An upstream artifact is not there; the message names the command that makes it."""


class DamagedFile(StudyError):
    """A file is unreadable, cut short or not what its manifest says; names file and line."""


class ConfigMismatch(StudyError):
    """A run exists under the same path with other settings; lists the fields that differ."""


class BrokenLineage(StudyError):
    """A result was made from inputs other than those that are there now."""


class StorageFailed(StudyError):
    """A write failed: full disk, read-only folder; says what is safe."""


class TooFewLists(StudyError):
    """The teacher wrote too few lists that pass the filter; shows the rate, reasons and samples."""


class RowTooLong(StudyError):
    """A chat has more tokens than the model can read; names the line."""


class OutOfMemory(StudyError):
    """Not even the smallest piece of work fits; says what was tried."""


class TrainingDiverged(StudyError):
    """The training loss is no longer a number."""


class NotAvailable(StudyError):
    """This machine or this version cannot do what was asked; says what can."""


class EngineFailed(StudyError):
    """The inference engine did not start or died; says what is safe."""
