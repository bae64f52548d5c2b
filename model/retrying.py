"""Keeping at it: calls that are committed, and tried again when that fails.

Three degrees: `never_fail` gives up never, `wait_for_system_recovery` waits for a database
that is away, `try_five_times` sits out a few conflicts. In all of them an attempt is a fresh
transaction: it begins (which aborts what was open), calls, commits; any error aborts it, and
no transaction is open while waiting.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Protocol, TypeVar

from transaction.interfaces import NoTransaction, TransientError
from ZEO.Exceptions import ClientDisconnected
from ZODB.POSException import POSKeyError, StorageError

from perdure.model.clock import Clock, StopSignal, SystemClock
from perdure.model.errors import StopRequested
from perdure.model.failure import Failure
from perdure.model.given import checked_callable
from perdure.model.logs import events

__all__ = [
    "OutageLog",
    "TransactionManager",
    "is_away",
    "is_disconnect",
    "is_told",
    "is_transaction_error",
    "never_fail",
    "tell_of_wait",
    "try_five_times",
    "wait_for_system_recovery",
]

T = TypeVar("T")

_FIRST_WAIT = timedelta(seconds=5)
_MORE_WAIT = timedelta(seconds=5)
_LONGEST_WAIT = timedelta(seconds=60)
_ATTEMPTS = 5


class OutageLog:
    """Tells of a database that is away once, and at every tenth attempt from then on.

    For whoever tries again and again, as `logged` of `try_five_times`. In one thread only.
    """

    def __init__(self, who: str, clock: Clock) -> None:
        self._who = who
        self._clock = clock
        self._count = 0
        self._last = 0.0

    def __call__(self, error: Exception) -> bool:
        """Take note of an error; true where it is a lost connection, and dealt with."""
        if not is_disconnect(error):
            return False
        now = self._clock.monotonic()
        # An attempt that succeeded says nothing: it may have found all that it read in a cache.
        if now - self._last > 2 * _LONGEST_WAIT.total_seconds():
            self._count = 0
        self._last = now
        self._count += 1
        if self._count == 1 or self._count % 10 == 0:
            events.error(
                "%s: the database is away (%s), attempt %d; trying again until it is back",
                self._who, str(error) or type(error).__name__, self._count,
            )  # fmt: skip
        return True


class TransactionManager(Protocol):
    """What is needed of a `transaction.TransactionManager`, explicit or not."""

    def begin(self) -> Any: ...

    def commit(self) -> Any: ...

    def abort(self) -> Any: ...


def is_disconnect(error: BaseException) -> bool:
    """Return whether `error` says that the database is away (and may come back).

    From any thread; does not touch the transaction.
    """
    return isinstance(error, ClientDisconnected)


def is_away(error: BaseException) -> bool:
    """Return whether `error` says that the database cannot answer now, and may do so later.

    Not so a key that is not there, nor whatever it is that loading an object raises.

    From any thread; does not touch the transaction.
    """
    known = isinstance(error, (TransientError, StorageError, OSError))
    return known and not isinstance(error, POSKeyError)


def is_transaction_error(error: BaseException) -> bool:
    """Return whether the same again, at once, may well succeed: a conflict, mostly.

    A lost connection is none, though its type says that it is transient: at once is too
    soon for it.

    From any thread; does not touch the transaction.
    """
    return isinstance(error, TransientError) and not is_disconnect(error)


def is_told(count: int) -> bool:
    """Return whether the trouble with that number is logged: the first, and every fifth."""
    return count == 1 or count % 5 == 0


def tell_of_wait(what: str, error: Exception, count: int, extra: dict[str, Any]) -> None:
    """Log that something waits for the database, or has met a conflict, if that is told.

    For whoever tries again and again, with the number of the attempt. From any thread; does
    not touch the transaction.
    """
    if is_told(count):
        level = logging.WARNING if is_transaction_error(error) else logging.INFO
        events.log(level, "%s, %d times so far: %s", what, count, error, extra=extra)


def never_fail(
    call: Callable[[], T],
    identifier: object,
    tm: TransactionManager,
    stop: StopSignal | None = None,
) -> T:
    """Call and commit until it succeeds, and return what the call returned.

    After a transaction error it tries again at once, with a WARNING at every fifth. After any
    other `Exception` it waits 5, 10, … 60 seconds, and logs the first and every tenth: ERROR
    for a lost connection or key, else CRITICAL.

    :param call: is called once for each attempt, so it must do all its work anew.
    :param identifier: says in the log what is being done: ``"storing the failure of …"``.
    :param tm: the transaction manager. What is open in it is aborted first; on return the
        call is committed; when something propagates, its transaction has been aborted.
    :param stop: ends the waits; None for one that nobody sets.
    :raises StopRequested: if `stop` is set when it would wait, or has had five
        transaction errors more; the first attempt is made in any case.
    :raises TypeError: for a `call` that cannot be called, or a `tm` that is none.
    :raises BaseException: whatever the call raises that is no `Exception`.

    Runs the call in the calling thread, which must be the one that may use `tm`.
    """
    return _keep_at_it(call, identifier, tm, stop, any_error=True)


def keep_at_it(
    call: Callable[[], T], identifier: object, tm: TransactionManager, stop: StopSignal
) -> T:
    """Do as `never_fail`, first in the transaction that was begun and has no changes yet."""
    return _keep_at_it(call, identifier, tm, stop, any_error=True, begun=True)


def wait_for_system_recovery(
    call: Callable[[], T],
    identifier: object,
    tm: TransactionManager,
    stop: StopSignal | None = None,
) -> T | Failure:
    """Call and commit; go on as long as it is for the database that it fails.

    After a transaction error it tries again at once, with a WARNING at every fifth. After a
    lost connection it waits 5, 10, … 60 seconds, with an ERROR at the first and every
    fifth. Any other `Exception` (a lost key too) is logged ERROR and returned.

    :param call: is called once for each attempt, so it must do all its work anew.
    :param identifier: says in the log what is being done.
    :param tm: the transaction manager. What is open in it is aborted first; on return the
        call is committed, or, if a new `Failure` is returned, aborted.
    :param stop: ends the waits; None for one that nobody sets.
    :return: what the call returned, or a `Failure` in place of what it raised.
    :raises StopRequested: as `never_fail`.
    :raises TypeError: for a `call` that cannot be called, or a `tm` that is none.
    :raises BaseException: whatever the call raises that is no `Exception`.

    Runs the call in the calling thread, which must be the one that may use `tm`.
    """
    _check(call, tm)
    try:
        return _keep_at_it(call, identifier, tm, stop, any_error=False)
    except Exception as error:
        events.error("Error while %s", identifier, exc_info=True)
        return Failure(error)


def try_five_times(
    call: Callable[[], T],
    identifier: object,
    tm: TransactionManager,
    stop: StopSignal | None = None,
    *,
    logged: Callable[[Exception], bool] = lambda error: False,
) -> T | Failure:
    """Call and commit, up to five times in all if there are transaction errors.

    The fifth one is logged CRITICAL and returned; any other `Exception` (a lost connection
    too) is logged ERROR and returned at once.

    :param call: is called once for each attempt, so it must do all its work anew.
    :param identifier: says in the log what is being done.
    :param tm: the transaction manager. What is open in it is aborted first; on return the
        call is committed, or, if a new `Failure` is returned, aborted.
    :param stop: not needed, since this never waits; taken so that the three are alike.
    :param logged: is called with the error, while it is handled, before it would be logged;
        true says that it need not be. Must not raise.
    :return: what the call returned, or a `Failure` in place of what it raised.
    :raises TypeError: for a `call` that cannot be called, or a `tm` that is none.
    :raises BaseException: whatever the call raises that is no `Exception`.

    Runs the call in the calling thread, which must be the one that may use `tm`.
    """
    _check(call, tm)
    conflicts = 0
    while True:
        try:
            return _attempt(call, identifier, tm)
        except Exception as error:
            if not is_transaction_error(error):
                if not logged(error):
                    events.error("Error while %s", identifier, exc_info=True)
                return Failure(error)
            conflicts += 1
            if conflicts == _ATTEMPTS:
                events.critical(
                    "%d transaction errors in a row while %s; giving up",
                    conflicts,
                    identifier,
                    exc_info=True,
                )
                return Failure(error)


def _keep_at_it(
    call: Callable[[], T],
    identifier: object,
    tm: TransactionManager,
    stop: StopSignal | None,
    *,
    any_error: bool,
    begun: bool = False,
) -> T:
    """Call and commit; wait after a disconnect, with `any_error` after each error; else raise.

    With `begun`, the transaction that is open is the first attempt's.
    """
    _check(call, tm)
    if stop is None:
        stop = StopSignal(SystemClock())
    conflicts = 0
    troubles = 0
    wait = _FIRST_WAIT
    log_every = 10 if any_error else 5
    while True:
        try:
            first, begun = begun, False
            return _attempt(call, identifier, tm, begun=first)
        except Exception as error:
            waits = not is_transaction_error(error)
            if not waits:
                conflicts += 1
                if conflicts % 5 == 0:
                    events.warning(
                        "%d transaction errors while %s; trying again",
                        conflicts,
                        identifier,
                        exc_info=True,
                    )
            elif any_error or is_disconnect(error):
                troubles += 1
                if troubles == 1 or troubles % log_every == 0:
                    events.log(
                        _level(error),
                        "Error number %d while %s; trying again in %d seconds",
                        troubles,
                        identifier,
                        wait.total_seconds(),
                        exc_info=True,
                    )
            else:
                raise
        # Out here, so that the error and all that its frames hold are let go of first.
        if waits:
            stop.wait(wait)
            wait = min(_LONGEST_WAIT, wait + _MORE_WAIT)
        elif conflicts % 5 == 0 and stop.is_set():
            raise StopRequested(f"the system stops: {identifier} was given up for now")


def _check(call: object, tm: object) -> None:
    """Raise `TypeError` for what would fail in each attempt alike."""
    checked_callable("call", call)
    if not all(hasattr(tm, name) for name in ("begin", "commit", "abort")):
        raise TypeError(f"tm has to be a transaction manager, and {tm!r} is none")


def _level(error: Exception) -> int:
    known = is_disconnect(error) or isinstance(error, POSKeyError)
    return logging.ERROR if known else logging.CRITICAL


def _attempt(
    call: Callable[[], T], identifier: object, tm: TransactionManager, *, begun: bool = False
) -> T:
    """Call in a transaction of its own and commit that; abort it and raise on any error."""
    try:
        if not begun:
            begin_anew(tm)
        result = call()
        tm.commit()
        return result
    except BaseException:
        try:
            _abort(tm)
        # The transaction is over even so, and the first error is the one to tell.
        except Exception as error:
            if not is_disconnect(error):
                events.error("The abort failed too, while %s", identifier, exc_info=True)
        raise


def begin_anew(tm: Any) -> None:
    """Abort what is open, and begin a transaction; each of these costs more than it seems.

    Raises what the abort does, or the beginning.
    """
    if getattr(tm, "explicit", True):
        _abort(tm)
    tm.begin()


def has_transaction(tm: Any) -> bool:
    """Tell whether a transaction of `tm` is open; where that cannot be told, it may be.

    For those who would abort it: to do so where there is none makes one first.
    """
    manager = getattr(tm, "manager", tm)
    return getattr(manager, "_txn", tm) is not None


def _abort(tm: TransactionManager) -> None:
    if not has_transaction(tm):
        return
    try:
        tm.abort()
    except NoTransaction:
        # Only explicit managers say so; nothing is open, and that is what is wanted.
        pass
