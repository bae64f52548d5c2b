"""What a job can call, how that is stored, and what is refused."""

from __future__ import annotations

import datetime
import functools
import importlib.machinery
import math
import operator
import subprocess
import sys
import textwrap
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transaction
from persistent import Persistent

from perdure.model import (
    CallableNotFoundError,
    Job,
    NotStorableError,
    StopRequested,
    environment,
    names,
    storable,
)
from support.desk import Counter, Desk

_SCRIPT_TIMEOUT_SECONDS = 120


def double(number: int) -> int:
    return 2 * number


def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


def decorate_badly(function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


@decorate
def decorated(number: int) -> int:
    return number + 1


class TwoArguments(Exception):
    """Can be pickled, and cannot be unpickled."""

    def __init__(self, one: object, two: object) -> None:
        super().__init__(f"{one} {two}")


class RaisesWhenRead:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __setstate__(self, state: dict[str, Any]) -> None:
        raise state["error"]


class Plain:
    def __init__(self, value: int = 0) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plain) and other.value == self.value

    __hash__ = None  # type: ignore[assignment]

    def method(self) -> int:
        return self.value

    def __call__(self) -> int:
        return self.value

    @classmethod
    def make(cls, value: int) -> tuple[str, int]:
        return cls.__name__, value

    @staticmethod
    def static(value: int) -> int:
        return value

    class Inner:
        @staticmethod
        def static(value: int) -> int:
            return -value


class Derived(Plain):
    pass


class Folder(Persistent):
    def odd(self) -> int:
        return 1

    @decorate_badly
    def wrapped(self) -> int:
        return 1

    alias = odd


class WithMethod(Job):
    def work(self, number: int) -> tuple[str, int]:
        return type(self).__name__, number


async def coroutine() -> None:
    pass


def replaced() -> int:
    return 1


original = replaced


def replaced() -> int:  # type: ignore[no-redef]  # noqa: F811
    return 2


@pytest.mark.spec("J1")
@pytest.mark.parametrize(
    ("callable_", "args", "result"),
    [
        (double, (2,), 4),
        (decorated, (2,), 3),
        (len, ("abc",), 3),
        (math.factorial, (4,), 24),
        (operator.add, (1, 2), 3),
        (str.upper, ("a",), "A"),
        (dict.fromkeys, ("ab",), {"a": None, "b": None}),
        (datetime.date.fromisoformat, ("2026-01-02",), datetime.date(2026, 1, 2)),
        (int, ("12",), 12),
        (Plain, (5,), Plain(5)),
        (Plain.make, (5,), ("Plain", 5)),
        (Derived.make, (5,), ("Derived", 5)),
        (Plain.static, (5,), 5),
        (Plain.Inner.static, (5,), -5),
    ],
)
def test_what_has_a_name_is_stored_by_it_and_called(
    desk: Desk, callable_: Any, args: tuple[Any, ...], result: object
) -> None:
    job = desk.put(Job(callable_, *args))
    assert isinstance(job._callable, str)
    with desk.elsewhere() as connection:
        assert connection.get(job._p_oid).callable == callable_
    desk.work()
    assert job.result == result


@pytest.mark.spec("J1")
@pytest.mark.parametrize("callable_", [double, Plain(3).method.__func__])
def test_a_callable_is_put_like_a_job(desk: Desk, callable_: Any) -> None:
    assert desk.put(callable_).callable == callable_


@pytest.mark.spec("J1")
def test_a_method_of_a_persistent_object_is_stored_as_object_and_name(desk: Desk) -> None:
    counter = desk.root["counter"] = Counter()
    jobs = [desk.put(Job(counter.add, 5)), desk.put(Job(counter, number=2))]
    assert jobs[0]._callable == (counter, "add")
    assert jobs[0].callable_name == "support.desk:Counter.add"
    desk.work()
    assert [job.result for job in jobs] == [5, 7]
    assert counter.value == 7


@pytest.mark.spec("J1")
def test_a_persistent_object_is_stored_by_the_job_that_calls_it(desk: Desk) -> None:
    job = desk.put(Job(Counter().add, 5))
    desk.work()
    with desk.elsewhere() as connection:
        assert connection.get(job._p_oid).callable.__self__.value == 5


@pytest.mark.spec("J1")
def test_bind_puts_the_job_before_its_own_arguments(desk: Desk) -> None:
    job = desk.put(Job.bind(operator.contains, None))
    job.args[1] = job
    assert job.args[0] is job
    job.args[1:] = []
    method = desk.put(WithMethod.bind(WithMethod.work, 3))
    desk.work()
    assert method.result == ("WithMethod", 3)


@pytest.mark.spec("J1")
def test_a_partial_is_taken_apart_also_one_of_a_partial(desk: Desk) -> None:
    inner = functools.partial(int, "11", base=3)
    job = desk.put(Job(functools.partial(inner, base=2)))
    assert (job.callable, list(job.args), dict(job.kwargs)) == (int, ["11"], {"base": 2})
    other = Job(functools.partial(operator.sub, 5), 3)
    desk.put(other)
    desk.work()
    assert (job.result, other.result) == (3, 2)


@pytest.mark.spec("J1")
def test_keyword_arguments_of_the_job_go_before_those_of_a_partial() -> None:
    assert Job(functools.partial(int, base=2), "11", base=3)() == 4


# Refused.


class LocalHolder:
    """Holds things that lie inside a function."""

    @staticmethod
    def nested() -> Any:
        def function() -> None:
            pass

        return function

    @staticmethod
    def local_persistent() -> Any:
        class Local(Persistent):
            def method(self) -> None:
                pass

        return Local()


def _renamed_method() -> Any:
    folder = Folder()
    return folder.wrapped


@pytest.mark.spec("J2")
@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: lambda: None, "lambda.*move it to the top of its module"),
        (LocalHolder.nested, "lies inside a function.*move it to the top"),
        (lambda: LocalHolder.local_persistent().method, "Local lies inside.*move it to the top"),
        (lambda: type(LocalHolder.local_persistent()), "lies inside a function.*move it to the"),
        (lambda: Plain(1).method, "not persistent: derive that class from persistent.Persistent"),
        (lambda: Plain(1), "no name.*give a module-level function"),
        (lambda: operator.itemgetter(1), "no name.*give a module-level function"),
        (lambda: [].append, "belongs to an object.*give a module-level function"),
        (lambda: "a".upper, "belongs to an object.*give a module-level function"),
        (lambda: original, "is now .* instead of .*give it a name of its own"),
        (_renamed_method, "under the name 'wrapper'.*give it a name of its own"),
        (lambda: 5, "cannot be called: give a function"),
        (lambda: functools.partial(lambda: None), "lambda"),
    ],
)
def test_what_is_not_found_again_is_refused_with_the_remedy(
    desk: Desk, make: Callable[[], Any], text: str
) -> None:
    with pytest.raises(NotStorableError, match=text):
        Job(make())
    with pytest.raises(NotStorableError, match=text):
        desk.queue.put(make())
    with pytest.raises(NotStorableError, match=text):
        Job(abs, 1).add_callback(make())
    assert len(desk.queue) == 0


@pytest.mark.spec("J2")
def test_a_method_under_a_second_name_is_stored_by_the_one_it_has() -> None:
    assert Job(Folder().alias).callable_name.endswith("Folder.odd")


@pytest.mark.spec("J2")
def test_arguments_that_cannot_be_stored_are_refused_wherever_they_are_given(
    desk: Desk, tmp_path: Path
) -> None:
    with (tmp_path / "file").open("w") as file:
        with pytest.raises(NotStorableError, match=r"argument 1 cannot .*TextIO.*give plain data"):
            Job(print, 1, file)
        with pytest.raises(NotStorableError, match="argument 'file' cannot be stored"):
            Job(print, 1, file=file)
        job = Job(print, 1)
        with pytest.raises(NotStorableError, match="argument 1 cannot be stored"):
            job.args.append([file])
        with pytest.raises(NotStorableError, match="argument 'file' cannot be stored"):
            job.kwargs["file"] = file
        with pytest.raises(NotStorableError, match="argument 0 cannot be stored"):
            job.args[0] = file
        assert (list(job.args), dict(job.kwargs)) == ([1], {})
        items: list[Any] = []
        job = Job(print, items)
        items.append(file)
        with pytest.raises(NotStorableError, match="argument 0 cannot be stored"):
            desk.queue.put(job)
        assert len(desk.queue) == 0


@pytest.mark.spec("J2")
@pytest.mark.parametrize(
    ("value", "text"),
    [
        (TwoArguments(1, 2), r"TypeError: .*missing 1 required positional argument: 'two'"),
        ([{"deep": (TwoArguments(1, 2),)}], "TypeError"),
        (RaisesWhenRead(RuntimeError("not now")), "RuntimeError: not now"),
        (RaisesWhenRead(SystemExit(1)), "SystemExit: 1"),
    ],
)
def test_an_argument_that_could_be_written_and_not_be_read_is_refused(
    desk: Desk, value: Any, text: str
) -> None:
    match = "cannot be stored.*can be written, but not be read again: " + text
    with pytest.raises(NotStorableError, match="argument 1 " + match):
        Job(print, 1, value)
    with pytest.raises(NotStorableError, match="argument 'key' " + match):
        Job(print, key=value)
    with pytest.raises(NotStorableError, match="argument 'key' " + match):
        Job(print).kwargs["key"] = value
    job = desk.put(Job(double, 2))
    with pytest.raises(NotStorableError, match="argument 0 " + match):
        job.add_callback(functools.partial(print, value))
    desk.root["job"] = failing = Job(RaisesWhenRead, RuntimeError("not now"))
    desk.put(failing)
    desk.work()
    assert failing.result.check(NotStorableError)
    assert job.result == 4


@pytest.mark.spec("J2")
@pytest.mark.parametrize("error", [KeyboardInterrupt, StopRequested])
def test_what_interrupts_the_check_of_an_argument_comes_out(error: type[BaseException]) -> None:
    with pytest.raises(error):
        Job(print, RaisesWhenRead(error()))


@pytest.mark.spec("J2", "X6")
def test_plain_data_is_not_read_again_to_find_out_whether_it_can_be(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[object] = []
    monkeypatch.setattr(storable, "_read_again", read.append)
    now = datetime.datetime.now(datetime.UTC)
    Job(print, 1, [{"a": (2.0, b"3", None, {True})}], now, now - now, len, double, desk.queue)
    assert read == []
    Job(print, Plain())
    assert len(read) == 1


@pytest.mark.spec("J2")
@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (SystemExit(1), CallableNotFoundError),
        (GeneratorExit(), CallableNotFoundError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (StopRequested(), StopRequested),
    ],
)
def test_a_module_that_ends_the_process_when_it_is_imported_is_one_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, raised: BaseException, expected: type[BaseException]
) -> None:
    def importing(name: str) -> None:
        raise raised

    monkeypatch.setattr(names.importlib, "import_module", importing)
    with pytest.raises(expected):
        names.resolve("some_module:function")


@pytest.mark.spec("J2")
def test_an_argument_of_a_local_persistent_class_is_refused() -> None:
    with pytest.raises(NotStorableError, match="argument 0 .*lies inside a function"):
        Job(print, LocalHolder.local_persistent())


@pytest.mark.spec("J2")
def test_a_job_of_a_local_class_is_refused_when_put(desk: Desk) -> None:
    class Local(Job):
        pass

    with pytest.raises(NotStorableError, match="Local lies inside a function"):
        desk.queue.put(Local(abs, 1))
    transaction.abort()
    assert len(desk.queue) == 0


@pytest.mark.spec("J2")
def test_what_no_longer_resolves_says_so_and_can_still_be_looked_at(desk: Desk) -> None:
    job = desk.store(Job(double, 1))
    job._callable = "no.such.module:function"
    with pytest.raises(CallableNotFoundError, match="no.such.module:function does not resolve"):
        _ = job.callable
    assert "no.such.module:function(1)" in repr(job)


# Functions of the main module.

_SCRIPT = """
    import sys, warnings
    from perdure.model import Job, NotStorableError
    from perdure.model.names import resolve

    def hello():
        return "hello"

    class Thing:
        @classmethod
        def make(cls):
            return "made"

    if __name__ == "__main__":
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                jobs = [Job(hello), Job(Thing.make), Job(hello)]
            except NotStorableError as error:
                print(error)
                sys.exit(3)
        print([job.callable_name for job in jobs], [job() for job in jobs])
        print([str(warning.message) for warning in caught])
"""


def run_python(folder: Path, *args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    import perdure.model

    path = Path(perdure.model.__path__[0]).parent.parent
    return subprocess.run(
        [sys.executable, *args],
        input=stdin,
        capture_output=True,
        text=True,
        cwd=folder,
        env={"PYTHONPATH": str(path), "PYTHONDONTWRITEBYTECODE": "1"},
        timeout=_SCRIPT_TIMEOUT_SECONDS,
    )


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.spec("J2")
def test_a_function_of_a_script_is_stored_by_the_scripts_path_with_one_warning(
    tmp_path: Path,
) -> None:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(_SCRIPT))
    done = run_python(tmp_path, "script.py")
    names, warned = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert names == repr([f"{script}:hello", f"{script}:Thing.make", f"{script}:hello"]) + (
        " ['hello', 'made', 'hello']"
    )
    assert warned.count("are found only by processes that run that script") == 1
    with pytest.raises(CallableNotFoundError, match="only in a process that runs that script"):
        _ = _with_name(f"{script}:hello").callable


def _with_name(name: str) -> Job:
    job = Job(abs)
    job._callable = name
    return job


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.spec("J2")
def test_a_function_of_a_module_run_with_m_is_stored_by_the_modules_real_name(
    tmp_path: Path,
) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    (tmp_path / "package" / "tool.py").write_text(textwrap.dedent(_SCRIPT))
    done = run_python(tmp_path, "-m", "package.tool")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "['package.tool:hello', 'package.tool:Thing.make', 'package.tool:hello'] "
        "['hello', 'made', 'hello']",
        "[]",
    ]


@pytest.mark.spec("J2")
def test_a_function_of_a_module_that_is_run_with_m_as_well_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Its module is imported under its name, too: what another process finds there is another one.
    main = types.ModuleType("__main__")
    main.__spec__ = importlib.machinery.ModuleSpec(double.__module__, None)
    assert Job(double, 1).callable_name == f"{double.__module__}:double"
    monkeypatch.setitem(sys.modules, "__main__", main)
    with pytest.raises(NotStorableError, match="cannot be found again by its name"):
        Job(double, 1)


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.spec("J2")
def test_a_function_of_a_folder_that_is_run_is_one_of_a_script(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "__main__.py").write_text(textwrap.dedent(_SCRIPT))
    done = run_python(tmp_path, "folder")
    assert done.returncode == 0, done.stderr
    assert f"{folder / '__main__.py'}:hello" in done.stdout


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.spec("J2")
@pytest.mark.parametrize("how", [("-",), ("-c", textwrap.dedent(_SCRIPT))])
def test_a_function_of_an_interactive_prompt_is_refused(
    tmp_path: Path, how: tuple[str, ...]
) -> None:
    done = run_python(tmp_path, *how, stdin=textwrap.dedent(_SCRIPT))
    assert done.returncode == 3, done.stderr
    assert "interactive prompt" in done.stdout and "put it into a module" in done.stdout


@pytest.mark.spec("J1")
def test_resolving_is_needed_only_where_the_job_runs(desk: Desk) -> None:
    known = environment(desk.database)
    job = desk.put(Job(double, 1))
    job._callable = "no.such.module:function"
    transaction.commit()
    assert desk.work() == 0
    assert "no.such.module:function" in known.unresolved
