"""The fence: a worker that lost its job commits nothing more for it."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, suppress
from typing import Any

from transaction.interfaces import TransactionFailedError
from ZODB.POSException import ConnectionStateError
from ZODB.utils import z64

from perdure.model import local
from perdure.model.errors import ReassignedError
from perdure.model.job import Job
from perdure.model.logs import events, fields

__all__ = ["Fence", "Refusal"]


class Fence:
    """Sees to it that no transaction of this thread commits for a job that was lost.

    Every commit writes the record of the job that was claimed, or makes sure that it is
    current; whoever takes the job from us writes it. It is registered as a synchronizer
    of the transaction manager, which tells it of every end of a transaction, also of
    those that the job's own code begins and ends.
    """

    def __init__(self, root: Job) -> None:
        self.root = root
        self.letting_go = False
        """Whether the runner itself is giving the job up, so that no agent has it then."""
        self.released = False
        """Whether it has done so."""
        self.calling = False
        """Whether the code of the job runs, whose commits are its own then."""
        self._agent, self._claim = root._claimed_by()
        self._warned = False
        self._thread = threading.get_ident()
        # Of the connection, if there is one yet.
        self._manager = None if root._p_jar is None else root._p_jar.transaction_manager

    def check(self) -> None:
        """Raise `ReassignedError` where the job was taken from us.

        Raises `ConnectionStateError` where its connection was closed: that may be another
        thread's by now.
        """
        root = self.root
        if root._p_jar is None:
            return
        if self._manager is not None and root._p_jar.transaction_manager is not self._manager:
            raise ConnectionStateError(f"the connection of {root._p_oid!r} was closed")
        root._p_activate()
        if self.letting_go:
            kept = root._claim == abs(self._claim)
        else:
            kept = root._is_held(self._agent, self._claim)
        if not kept:
            raise ReassignedError(
                f"{root!r} was taken from this worker: what it has not committed is dropped"
            )

    def in_call(self, job: Job) -> AbstractContextManager[None]:
        """While the code of `job` runs: it is the current job, and commits are its own."""
        return _InCall(self, local.running(job, self.root))

    def newTransaction(self, transaction: Any) -> None:  # noqa: N802
        """Do nothing: a transaction that `get` makes is not announced here, anyway."""

    def beforeCompletion(self, transaction: Any) -> None:  # noqa: N802
        """Fence the transaction off; it may be about to commit, or to abort."""
        # Another thread aborts it when the database is closed; that is not the job's doing.
        ours = threading.get_ident() == self._thread
        if self.calling and ours and not self._warned:
            self._warned = True
            events.warning(
                "%r ends its transaction by itself: what it does is no longer in one "
                "transaction with its result", self.root, extra=fields(self.root),
            )  # fmt: skip
        # A transaction whose commit has failed can only be aborted, and cannot be joined.
        with suppress(TransactionFailedError):
            try:
                self._fence_off()
            except TransactionFailedError:
                raise
            # Raised here, it would spoil an abort; joined, it spoils a commit alone.
            except Exception as error:
                transaction.join(Refusal(error))

    def afterCompletion(self, transaction: Any) -> None:  # noqa: N802
        """Do nothing."""

    def _fence_off(self) -> None:
        root = self.root
        if root._p_jar is None:
            return
        self.check()
        if root._p_serial == z64:
            return
        if self.calling:
            # The job's own commit may write to other data managers alone, and then a
            # mere readCurrent is not looked at.
            root._p_changed = True
        else:
            root._p_jar.readCurrent(root)


class Refusal:
    """A data manager that lets its transaction be aborted, and not committed."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def sortKey(self) -> str:  # noqa: N802
        return "\0"

    def tpc_begin(self, transaction: Any) -> None:
        raise self._error

    def abort(self, transaction: Any) -> None:
        pass

    commit = tpc_vote = tpc_finish = tpc_abort = abort


class _InCall:
    def __init__(self, fence: Fence, current: AbstractContextManager[None]) -> None:
        self._fence = fence
        self._current = current

    def __enter__(self) -> None:
        self._current.__enter__()
        self._fence.calling = True

    def __exit__(self, *exc_info: Any) -> None:
        self._fence.calling = False
        self._current.__exit__(None, None, None)
