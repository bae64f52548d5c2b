"""The errors of Perdure; all but one derive from `PerdureError`.

Whether a thing may be tried again is told by the type: a
`transaction.interfaces.TransientError` may, none of these needs to be.
"""

from __future__ import annotations

__all__ = [
    "AbortedError",
    "ActorGivenUpError",
    "AskInterruptedError",
    "BadStatusError",
    "CallableNotFoundError",
    "DatabaseAccessError",
    "DatabaseLockedError",
    "DatabaseNotFoundError",
    "FailureError",
    "IdentityError",
    "JobFailedError",
    "JobNotFoundError",
    "JobTimeoutError",
    "NotInstalledError",
    "NotStorableError",
    "PerdureError",
    "ProcessNotReachableError",
    "PutInDoubtError",
    "QueueNotFoundError",
    "ReassignedError",
    "StopRequested",
    "UnknownMessageError",
    "UnknownSettingError",
]


class PerdureError(Exception):
    """What every error of Perdure derives from."""


class BadStatusError(PerdureError):
    """A job was asked for something that its status does not allow."""


class NotStorableError(PerdureError, TypeError):
    """A callable or an argument cannot be stored, or not found again by its name."""


class CallableNotFoundError(PerdureError, LookupError):
    """A stored name does not resolve in this process.

    `name` is the stored name, ``module:qualname``.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name} does not resolve: {self.reason}"


class JobNotFoundError(PerdureError, LookupError):
    """What was given names no job, or one that is unknown here or was forgotten."""


class QueueNotFoundError(PerdureError, LookupError):
    """There is no queue of that name."""


class NotInstalledError(PerdureError, LookupError):
    """The database has no queues yet: call `perdure.model.install` first."""


class DatabaseNotFoundError(PerdureError, LookupError):
    """There is no database where one was expected."""


class DatabaseAccessError(PerdureError):
    """This user may not use the database's file, or what lies beside it."""


class DatabaseLockedError(PerdureError):
    """Another process has the database's file open, and does not share it."""


class IdentityError(PerdureError):
    """The file with this process's identity cannot be used."""


class ProcessNotReachableError(PerdureError):
    """Another process cannot be asked from here; the text says why, and what to do."""


class UnknownMessageError(PerdureError, TypeError):
    """An actor was asked something that it has no handler for."""


class AskInterruptedError(PerdureError):
    """An actor was thrown out of its answer by something that is no `Exception`."""


class ActorGivenUpError(PerdureError):
    """An actor crashed too often and does nothing any more, except stop."""


class UnknownSettingError(PerdureError, ValueError):
    """A setting has a name or a value that is not allowed."""


class AbortedError(PerdureError):
    """A job ended without a result of its own: interrupted or cancelled for good."""


class JobTimeoutError(PerdureError):
    """A job was not begun by its `begin_by`."""


class ReassignedError(PerdureError):
    """A job was taken from the worker that had it; nothing more is committed for it."""


class JobFailedError(PerdureError):
    """The result of the job that was waited for is a failure.

    `failure` is the `perdure.model.Failure`, `ref` the job's `JobRef`.
    """

    def __init__(self, ref: object, failure: object) -> None:
        super().__init__(ref, failure)
        self.ref = ref
        self.failure = failure

    def __str__(self) -> str:
        return f"job {self.ref} failed: {self.failure}"


class FailureError(PerdureError):
    """A stored failure was raised again, and its own type cannot be made here.

    `failure` is the `perdure.model.Failure`; `failure.check(...)` tells its type.
    """

    def __init__(self, failure: object) -> None:
        super().__init__(failure)
        self.failure = failure

    def __str__(self) -> str:
        return f"{self.failure} (this type cannot be created again here; ask `failure.check`)"


class PutInDoubtError(PerdureError):
    """The database was lost while a job was put: it may have been put all the same.

    `ref` is the `JobRef` that it has then: once the database is back,
    ``find_job(connection, ref)`` returns the job, or raises `JobNotFoundError`.
    """

    def __init__(self, ref: object) -> None:
        super().__init__(ref)
        self.ref = ref

    def __str__(self) -> str:
        return (
            f"the database was lost while job {self.ref} was put, which may have taken place: "
            "ask find_job for it before you put it again"
        )


class StopRequested(BaseException):
    """The system stops; raised out of a wait in a worker's thread.

    It is no `Exception`, so that job code and retry policies do not catch it.
    """
