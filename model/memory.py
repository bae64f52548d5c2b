"""What a retry policy keeps in itself, through the aborts of its job's attempts."""

from __future__ import annotations

from typing import Any

from perdure.model.job import Job
from perdure.model.policy import RetryPolicy
from perdure.model.storable import copied

__all__ = ["Memory"]


class Memory:
    """The state of one job's policy, to be stored with the next commit that succeeds."""

    def __init__(self) -> None:
        self._policy: RetryPolicy | None = None
        self._state: dict[str, Any] | None = None

    @property
    def is_kept(self) -> bool:
        """Whether there is anything to be stored."""
        return self._state is not None

    def keep(self, policy: RetryPolicy) -> None:
        """Remember the policy as it is now; raises where that cannot be stored."""
        policy._p_activate()
        state: Any = policy.__getstate__()
        self._state = copied(state)
        self._policy = policy

    def restore(self, job: Job) -> None:
        """Give `job` the policy that was remembered, to be stored with this transaction."""
        if self._state is None:
            return
        if job._policy is None:
            job._policy = self._policy
        self._policy = job._policy
        assert self._policy is not None
        self._policy._p_activate()
        self._policy.__setstate__(copied(self._state))
        self._policy._p_changed = True
