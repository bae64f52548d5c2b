"""A stage for each test, and what is there when everything has ended."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import ZODB
from ZODB.FileStorage import FileStorage
from ZODB.POSException import ConflictError

from catastrophes import scenes
from catastrophes.children import Child
from catastrophes.stage import Place, Stage
from catastrophes.workload import Ledger
from perdure.model import Failure, Job, JobRef, Status, check, get_queue, install

HOUR = timedelta(hours=1)
SECOND = timedelta(seconds=1)


class Scene:
    """Puts jobs, starts workers, and looks at what they have left."""

    def __init__(self, folder: Path) -> None:
        self.stage = Stage(folder)
        self.stage.start_server("--timeout", "3")
        self.connect()
        install(self.database)
        with self.database.transaction() as connection:
            connection.root()["ledger"] = Ledger()

    def connect(self) -> None:
        """Open the database in this process, anew where the server may have gone away."""
        self.database = self.stage.database()

    def put(
        self,
        function: Any,
        *args: Any,
        kind: type[Job] = Job,
        tells: bool = False,
        **settings: Any,
    ) -> JobRef:
        """Put a job whose function gets the ledger first, where it wants one.

        With `tells` the worker says ``done KEY`` when its result is stored.
        """

        def make(ledger: Ledger) -> Job:
            job = _job(kind, ledger, function, args)
            if tells:
                job.add_callback(Job(scenes.tell_done, args[-1]))
            return job

        return self.put_made(make, **settings)

    def put_made(self, make: Callable[[Ledger], Job], **settings: Any) -> JobRef:
        """Put the job that `make` makes of the ledger."""
        with self.database.transaction() as connection:
            job = make(connection.root()["ledger"])
            for name, value in settings.items():
                setattr(job, name, value)
            return get_queue(connection).put(job).ref

    def change(self, change: Callable[[Any], object]) -> None:
        """Commit a change, whoever else is at it."""
        while True:
            try:
                with self.database.transaction() as connection:
                    change(connection)
                return
            except ConflictError:
                pass

    def worker(self, name: str, **settings: Any) -> Place:
        """Start a worker; returns when its system has started."""
        place = self.stage.place(name, **settings)
        self.begin(place)
        return place

    def begin(self, place: Place) -> Child:
        """Start a process in that place (again), and return when its system has started."""
        child = place.start()
        assert child.line("ready"), f"{place.name} does not start: see {place.log}"
        return child

    def finish(self) -> End:
        """Let everything stop, and return what there is then."""
        for place in self.stage.places:
            if place.child is not None and not place.child.ended:
                place.child.terminate()
                assert place.child.wait() == 0
        self.stage.end()
        return End(self.stage)


class End:
    """What is in the file when the server has ended, and what the jobs have left beside it."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        database = ZODB.DB(FileStorage(str(stage.file)))
        with contextlib.closing(database), database.transaction() as connection:
            self.times: dict[str, int] = dict(connection.root()["ledger"].entries.items())
            queue = get_queue(connection)
            self.waiting = len(queue)
            self.jobs: dict[int, tuple[Status, str]] = {}
            for record in queue.dispatchers.records():
                for agent in record.agents():
                    for job in agent.completed:
                        self._note(job)
                        for callback in job.descendants():
                            self._note(callback)
            self.violations = check(database)

    def _note(self, job: Job) -> None:
        result = job.result
        text = result.type_name if isinstance(result, Failure) else "success"
        self.jobs[job.ref.oid] = job.status, text

    def outcome(self, ref: JobRef) -> str:
        """Return ``success``, or with what a COMPLETED job has failed."""
        status, text = self.jobs.get(ref.oid, (None, ""))
        return text if status is Status.COMPLETED else f"not completed: {status}"

    @property
    def visits(self) -> Counter[tuple[str, str]]:
        """How often a job was begun, by its name and the place."""
        return Counter((each["name"], each["place"]) for each in self._visits())

    @property
    def processes(self) -> Counter[str]:
        """In how many processes a job was begun, by its name; in each maybe several times."""
        return Counter(
            name for name, _ in {(each["name"], each["pid"]) for each in self._visits()}
        )

    def _visits(self) -> list[dict[str, Any]]:
        path = self._stage.folder / scenes.VISITS
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]


def _job(kind: type[Job], ledger: Ledger, function: Any, args: Sequence[Any]) -> Job:
    wants_ledger = function.__code__.co_varnames[:1] == ("ledger",)
    return kind(function, *([ledger] if wants_ledger else []), *args)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path / "stage")
    yield made
    made.stage.close()
