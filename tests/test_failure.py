"""Failures: what is kept of an exception, and what must not be."""

from __future__ import annotations

import copy
import pickle
import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from persistent import Persistent
from persistent.mapping import PersistentMapping
from ZODB.DB import DB
from ZODB.MappingStorage import MappingStorage

from perdure.model.errors import (
    CallableNotFoundError,
    FailureError,
    PerdureError,
    StopRequested,
    UnknownSettingError,
)
from perdure.model.failure import Failure, FailureLimits, Frame
from perdure.model.saferepr import safe_repr

pytestmark = pytest.mark.spec("J7")

GLOBAL = "a value of the module"


class OddError(ValueError):
    pass


class NeedsMoreError(Exception):
    """Cannot be constructed from its `args`."""

    def __init__(self, first: object, second: object) -> None:
        super().__init__(first)


class Unprintable:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __repr__(self) -> str:
        raise self.error


class Account(Persistent):
    """Its repr reads its state, as many do."""

    def __init__(self, balance: int) -> None:
        self.balance = balance

    def __repr__(self) -> str:
        return f"Account({self.balance})"

    def owe(self) -> None: ...


@dataclass
class Settings:
    user: str
    api_key: str


def caught(call: Callable[..., object], *args: Any) -> BaseException:
    try:
        call(*args)
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def failure_of(call: Callable[..., object], *args: Any, **limits: Any) -> Failure:
    return Failure(caught(call, *args), FailureLimits(**limits))


def raise_it(error: BaseException) -> None:
    raise error


def raise_with_local(value: object) -> None:
    raise OddError("odd")


def locals_of(failure: Failure) -> dict[str, str]:
    return dict(failure.frames[-1].locals)


def chained() -> None:
    try:
        raise KeyError("first")
    except KeyError as first:
        try:
            raise OddError("second") from first
        except OddError:
            raise RuntimeError("third\nin two lines")  # noqa: B904


def from_nothing() -> None:
    try:
        raise KeyError("first")
    except KeyError:
        raise OddError("second") from None


def recurse(depth: int) -> None:
    if depth:
        recurse(depth - 1)
    raise_it(OddError("bottom"))


# What is kept.


def test_type_message_and_frames_are_kept() -> None:
    failure = failure_of(raise_with_local, 7)

    assert failure.type_name == f"{__name__}.OddError"
    assert str(failure) == f"{__name__}.OddError: odd"
    assert [frame.function for frame in failure.frames] == ["caught", "raise_with_local"]
    last = failure.frames[-1]
    assert last == Frame(
        __file__,
        raise_with_local.__code__.co_firstlineno + 1,
        "raise_with_local",
        'raise OddError("odd")',
        (("value", "7"),),
    )


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("odd"), "ValueError: odd"),
        (ValueError(), "ValueError"),
        (KeyError("key"), "KeyError: 'key'"),
        (CallableNotFoundError("a:b", "gone"), "a:b does not resolve: gone"),
    ],
)
def test_a_failure_is_shown_as_the_last_line_of_a_traceback(error: Exception, text: str) -> None:
    assert str(Failure(error)).endswith(text)
    assert repr(Failure(error)) == f"<Failure {Failure(error)}>"


def test_an_exception_that_was_never_raised_has_no_frames() -> None:
    failure = Failure(OddError("odd"))

    assert failure.frames == ()
    assert failure.traceback() == str(failure)


def test_making_one_by_name_is_the_same() -> None:
    error = caught(chained)

    assert Failure.from_exception(error) == Failure(error)


def test_only_exceptions_become_failures() -> None:
    with pytest.raises(TypeError, match="'odd'"):
        Failure("odd")  # type: ignore[arg-type]


def test_it_is_no_exception_itself() -> None:
    assert not isinstance(Failure(OddError()), BaseException)


def test_causes_and_contexts_are_kept_as_far_as_python_would_show_them() -> None:
    failure = failure_of(chained)

    assert failure.cause is None
    assert failure.context is not None
    assert failure.context.check(OddError)
    assert failure.context.cause is not None
    assert failure.context.cause.check(KeyError)
    assert failure.context.context is None


def test_a_context_that_was_suppressed_is_not_kept() -> None:
    failure = failure_of(from_nothing)

    assert (failure.cause, failure.context, failure.suppress_context) == (None, None, True)


def test_a_cause_hides_the_context_whatever_the_exception_says() -> None:
    error = OddError("odd")
    error.__cause__, error.__context__ = KeyError("cause"), KeyError("context")
    error.__suppress_context__ = False

    failure = Failure(error)

    assert failure.cause is not None
    assert failure.context is None


def test_exceptions_that_cause_each_other_are_kept_once() -> None:
    first, second = OddError("first"), OddError("second")
    first.__cause__, second.__cause__ = second, first

    failure = Failure(first)

    assert failure.cause is not None
    assert failure.cause.cause is None
    assert not failure.cause.chain_cut


def test_a_chain_without_end_is_cut_and_says_so() -> None:
    error: Exception = OddError("0")
    for number in range(1, 100):
        error, error.__context__ = OddError(str(number)), error

    failure = Failure(error, FailureLimits(exceptions=3))

    assert failure.context is not None and failure.context.context is not None
    assert failure.context.context.context is None
    assert failure.traceback().count("During handling of the above") == 2
    assert "(further exceptions left out)" in failure.traceback()
    assert Failure(error).traceback().count("During handling of the above") == 19


def test_the_parts_of_a_group_are_kept() -> None:
    group = ExceptionGroup("several", [caught(chained), OddError("other")])  # type: ignore[list-item]

    failure = Failure(group)

    assert [part.type_name for part in failure.parts] == [
        "builtins.RuntimeError",
        f"{__name__}.OddError",
    ]
    lines = failure.traceback().splitlines()
    assert lines[0] == "ExceptionGroup: several (2 sub-exceptions)"
    assert lines[1] == "  +---------------- 1 ----------------"
    assert "  | KeyError: 'first'" in lines
    assert "  | in two lines" in lines
    assert lines[-1] == "  +------------------------------------"
    with pytest.raises(FailureError):
        failure.raise_exception()


def test_notes_are_kept() -> None:
    error = OddError("odd")
    error.add_note("it was raining")
    error.__notes__.append(7)  # type: ignore[arg-type]

    assert Failure(error).notes == ("it was raining",)
    assert Failure(error).traceback().endswith("odd\nit was raining")


# What is not kept.


def test_no_live_object_is_kept() -> None:
    def texts_only(state: object) -> bool:
        if isinstance(state, tuple):
            return all(map(texts_only, state))
        return state is None or type(state) in (str, int, bool)

    assert texts_only(failure_of(raise_with_local, object()).__getstate__())


def test_globals_are_not_kept() -> None:
    error = caught(exec, "inner = 1\nraise ValueError('odd')", {"__name__": "elsewhere"})

    failure = Failure(error)

    assert failure.frames[-1].function == "<module>"
    assert failure.frames[-1].locals == ()
    assert GLOBAL not in failure.traceback("verbose")


@given(
    text=st.text("ab'\"\\\né", min_size=1, max_size=5),
    length=st.integers(0, 250),
    listed=st.booleans(),
)
def test_a_repr_is_cut_at_200_characters(text: str, length: int, listed: bool) -> None:
    value = [text] * (length // 5) if listed else (text * length)[:length]

    text = locals_of(failure_of(raise_with_local, value))["value"]

    whole = repr(value)
    assert len(text) <= 200
    assert text == (whole if len(whole) <= 200 else whole[:199] + "…")


def test_the_length_of_reprs_can_be_set() -> None:
    failure = failure_of(raise_with_local, "abcdefghij", repr_characters=5)

    assert locals_of(failure) == {"value": "'abc…"}


def test_something_huge_is_not_spelt_out_to_be_cut() -> None:
    spelt: list[int] = []

    class Item:
        def __repr__(self) -> str:
            spelt.append(1)
            return "Item()"

    text = safe_repr([Item() for _ in range(10_000)])

    assert text == f"[{'Item(), ' * 25}"[:199] + "…"
    assert len(spelt) < 40


def test_fifty_locals_of_a_frame_are_kept_unless_set_otherwise() -> None:
    names = [f"name_{number}" for number in range(60)]
    source = f"def f():\n {' = '.join(names)} = 1\n raise ValueError"
    namespace: dict[str, Any] = {}
    exec(source, namespace)

    frame = failure_of(namespace["f"]).frames[-1]
    assert [name for name, _ in frame.locals] == names[:50]
    assert frame.locals_left_out == 10
    assert "      (10 more)" in failure_of(namespace["f"]).traceback("verbose").splitlines()

    few = failure_of(namespace["f"], locals_per_frame=2).frames[-1]
    assert (len(few.locals), few.locals_left_out) == (2, 58)


@pytest.mark.parametrize(
    "name",
    [
        "password",
        "user_passwd",
        "SECRET",
        "access_token",
        "api_key",
        "apiKey",
        "Authorization",
        "session_cookies",
        "credentials",
        "private_key",
    ],
)
def test_values_of_names_that_look_secret_are_masked(name: str) -> None:
    source = f"def f(**kwargs):\n {name} = kwargs['{name}']\n raise ValueError"
    namespace: dict[str, Any] = {}
    exec(source, namespace)

    # The value apart from the call: source lines are kept as they stand.
    values = {name: "hunter2", "other": 1}

    failure = Failure(caught(lambda: namespace["f"](**values)))

    assert dict(failure.frames[-1].locals) == {
        "kwargs": f"{{'{name}': ***, 'other': 1}}",
        name: "***",
    }
    assert b"hunter2" not in pickle.dumps(failure)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"password": {"new": "hunter2", "old": "hunter1"}}, "{'password': ***}"),
        ({b"token": b"hunter2"}, "{b'token': ***}"),
        ([{"x": ({"secret": "hunter2"},)}], "[{'x': ({'secret': ***},)}]"),
        ("https://x/?token=hunter2&page=1", "'https://x/?token=***&page=1'"),
        ("Authorization: Bearer hunter2", "'Authorization: ***'"),
        ("password='hunter2 again'", '"password=***"'),
        ("x" * 180 + " password=hunter2hunter2hunter2", "'" + "x" * 180 + " password=***'…"),
    ],
)
def test_secrets_inside_values_are_masked(value: object, text: str) -> None:
    found = safe_repr(value)

    assert found == text
    assert "hunter" not in found


def test_secrets_in_the_repr_of_other_objects_are_masked() -> None:
    text = safe_repr(Settings("bob", api_key='it\'s "hunter2"'))

    assert text.endswith("Settings(user='bob', api_key=***)")


def test_what_looks_secret_can_be_set() -> None:
    text = locals_of(failure_of(raise_with_local, {"pin": 1, "token": 2}, secret_names=("pin",)))

    assert text == {"value": "{'pin': ***, 'token': 2}"}


@pytest.mark.parametrize(
    "error", [ValueError("odd"), SystemExit(), RecursionError(), GeneratorExit()]
)
def test_a_repr_that_raises_is_survived(error: BaseException) -> None:
    failure = failure_of(raise_with_local, [1, Unprintable(error), 3])

    name = f"{__name__}.Unprintable"
    expected = f"[1, <{name}: repr raised {type(error).__name__}>, 3]"
    assert locals_of(failure) == {"value": expected}


@pytest.mark.parametrize("kind", [KeyboardInterrupt, StopRequested])
def test_what_comes_from_outside_during_a_repr_is_not_swallowed(kind: type[BaseException]) -> None:
    error = caught(raise_with_local, Unprintable(kind()))

    with pytest.raises(kind):
        Failure(error)


def test_a_message_that_cannot_be_made_is_survived() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise OddError

    assert Failure(Mute()).message == "<its str raised OddError>"


def test_a_repr_that_is_no_text_is_survived() -> None:
    class Wrong:
        def __repr__(self) -> str:
            return 7  # type: ignore[return-value]

    assert safe_repr(Wrong()).endswith("repr raised TypeError>")


def test_containers_within_themselves_are_survived() -> None:
    value: list[object] = [1]
    value.append(value)

    assert safe_repr(value).startswith("[1, [1, ")


@pytest.mark.parametrize(
    "value",
    [
        [],
        (),
        (1,),
        (1, 2),
        {},
        {1: "a"},
        set(),
        {1},
        frozenset(),
        frozenset({1}),
        b"a",
        None,
        "é",
        1.5,
    ],
)
def test_plain_values_are_shown_as_they_are(value: object) -> None:
    assert safe_repr(value) == repr(value)


def test_stored_objects_are_not_loaded_for_their_repr() -> None:
    database = DB(MappingStorage(), database_name="bank")
    connection = database.open()
    try:
        root = connection.root()
        root["account"] = account = Account(7)
        root["by_name"] = by_name = PersistentMapping(a=account)
        new = Account(8)
        bound = account.owe
        connection.transaction_manager.commit()
        connection.cacheMinimize()
        ghost = connection.get(account._p_oid)
        connection.getTransferCounts(clear=True)

        def fail(ghost: object, by_name: object, bound: object, inside: object) -> None:
            raise OddError("odd")

        text = locals_of(failure_of(fail, ghost, by_name, bound, [{"new": new}, (ghost,)]))

        oid = int.from_bytes(account._p_oid, "big")
        shown = f"<{__name__}.Account oid {oid:#x} in 'bank'>"
        assert text["ghost"] == shown
        assert text["by_name"].startswith("<persistent.mapping.PersistentMapping oid 0x")
        assert text["inside"] == f"[{{'new': Account(8)}}, ({shown},)]"
        assert text["bound"] == f"<bound method Account.owe of {shown}>"
        assert account._p_changed is None and by_name._p_changed is None
        assert connection.getTransferCounts()[0] == 0
    finally:
        connection.transaction_manager.abort()
        connection.close()
        database.close()


def test_of_a_deep_recursion_the_first_and_last_frames_are_kept() -> None:
    failure = failure_of(recurse, 500)

    # caught, 501 times recurse, raise_it
    assert len(failure.frames) == 100
    assert (failure.frames_before_gap, failure.frames_left_out) == (20, 403)
    assert failure.frames[0].function == "caught"
    assert locals_of(failure) == {"error": "OddError('bottom')"}
    assert dict(failure.frames[1].locals) == {"depth": "500"}
    assert failure.traceback().splitlines()[41] == "  (403 frames left out)"


def test_a_recursion_error_becomes_a_failure() -> None:
    def endless() -> None:
        endless()

    failure = pickle.loads(pickle.dumps(failure_of(endless)))

    assert failure.check(RecursionError)
    assert len(failure.frames) == 100
    assert failure.frames_left_out > 500


def test_how_many_frames_are_kept_can_be_set() -> None:
    failure = failure_of(recurse, 50, first_frames=2, last_frames=0)

    assert [frame.function for frame in failure.frames] == ["caught", "recurse"]
    assert failure.traceback().splitlines()[-2] == "  (51 frames left out)"


@pytest.mark.parametrize("name", ["repr_characters", "exceptions", "locals_per_frame"])
def test_a_limit_that_makes_no_sense_is_refused(name: str) -> None:
    with pytest.raises(UnknownSettingError, match=f"{name} is -1"):
        FailureLimits(**{name: -1})  # type: ignore[arg-type]


# As a value.


def test_it_cannot_be_changed() -> None:
    failure = Failure(OddError("odd"))

    with pytest.raises(AttributeError):
        failure.message = "even"  # type: ignore[misc]
    with pytest.raises(AttributeError):
        failure.__setstate__(Failure(OddError("even")).__getstate__())
    assert failure.message == "odd"


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=5,
)


@settings(max_examples=40)
@given(args=st.lists(PLAIN, max_size=3), value=PLAIN, protocol=st.integers(2, 5))
def test_it_survives_pickling_and_copying(args: list[Any], value: object, protocol: int) -> None:
    def fail(inner: object) -> None:
        try:
            raise OddError(*args)
        except OddError as error:
            raise KeyError(inner) from error

    failure = failure_of(fail, value)
    loaded = pickle.loads(pickle.dumps(failure, protocol))

    assert loaded == failure == copy.deepcopy(failure)
    assert hash(loaded) == hash(failure)
    assert repr(loaded.args) == repr(failure.args)
    assert loaded.traceback("verbose") == failure.traceback("verbose")


def test_different_failures_are_not_equal() -> None:
    assert failure_of(raise_with_local, 1) == failure_of(raise_with_local, 1)
    assert failure_of(raise_with_local, 1) != failure_of(raise_with_local, 2)
    assert Failure(OddError("odd")) != Failure(ValueError("odd"))


def test_it_is_small_and_names_no_other_class_in_the_database() -> None:
    pickled = pickle.dumps(failure_of(chained), 3)

    # Four frames of this file: that is the file's name once, and some lines.
    assert len(pickled) < 2_000
    assert pickled.count(__file__.encode()) == 1
    assert re.findall(rb"c([\w.]+\n\w+)\n", pickled) == [b"perdure.model.failure\nFailure"]


def test_a_failure_stored_by_a_newer_version_is_refused() -> None:
    with pytest.raises(ValueError, match="format 2"):
        object.__new__(Failure).__setstate__((2, (), "something new"))


# As a text.


@pytest.mark.parametrize("call", [chained, from_nothing, lambda: recurse(2)])
def test_the_default_traceback_reads_like_pythons_own(call: Callable[[], None]) -> None:
    error = caught(call)

    python = "".join(traceback.format_exception(error))
    without_marks = re.sub(r"^ +[~^]+ *\n", "", python, flags=re.MULTILINE)
    assert Failure(error).traceback() + "\n" == without_marks


def test_a_direct_cause_is_told_from_a_context() -> None:
    text = failure_of(chained).traceback()

    assert "\nThe above exception was the direct cause of the following exception:\n" in text
    assert "\nDuring handling of the above exception, another exception occurred:\n" in text


def test_the_brief_traceback_has_a_line_for_each_frame() -> None:
    failure = failure_of(raise_with_local, 7)

    first, second = (frame.line for frame in failure.frames)
    assert failure.traceback("brief").splitlines() == [
        f"{__file__}:{first}:caught",
        f"{__file__}:{second}:raise_with_local",
        f"{__name__}.OddError: odd",
    ]


def test_the_verbose_traceback_adds_the_locals() -> None:
    lines = failure_of(raise_with_local, 7).traceback("verbose").splitlines()

    assert lines[-3:] == [
        '    raise OddError("odd")',
        "      value = 7",
        f"{__name__}.OddError: odd",
    ]
    assert "value = 7" not in failure_of(raise_with_local, 7).traceback()


def test_another_detail_is_refused_and_the_known_ones_named() -> None:
    with pytest.raises(ValueError, match="'long'.* brief, default, verbose"):
        Failure(OddError()).traceback("long")  # type: ignore[arg-type]


# Asked and raised again.


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ((OddError,), OddError),
        ((KeyError, ValueError, OddError), ValueError),
        ((KeyError,), None),
        ((), None),
        (("ValueError",), "ValueError"),
        (("builtins.ValueError",), "builtins.ValueError"),
        ((f"{__name__}.OddError",), f"{__name__}.OddError"),
        ((f"{__name__}:OddError",), f"{__name__}:OddError"),
        (("nowhere.OddError", Exception), Exception),
        (("OddError",), None),
    ],
)
def test_check_finds_the_type_or_a_base_of_it_like_an_except_clause(
    asked: tuple[Any, ...], answer: object
) -> None:
    failure = pickle.loads(pickle.dumps(Failure(OddError("odd"))))

    assert failure.check(*asked) == answer


@pytest.mark.parametrize("asked", [7, int, (OddError,)])
def test_check_refuses_what_is_no_exception_type(asked: Any) -> None:
    with pytest.raises(TypeError, match="neither an exception type"):
        Failure(OddError()).check(asked)


def test_trap_returns_what_matches_and_raises_what_does_not() -> None:
    failure = Failure(OddError("odd"))

    assert failure.trap(KeyError, "ValueError") == "ValueError"
    with pytest.raises(OddError, match="odd"):
        failure.trap(KeyError)


def test_the_exception_is_raised_again_with_the_stored_traceback_as_a_note() -> None:
    failure = pickle.loads(pickle.dumps(failure_of(raise_it, OddError("odd", 7, (None, True)))))

    with pytest.raises(OddError) as info:
        failure.raise_exception()

    assert info.value.args == ("odd", 7, (None, True))
    assert failure.traceback() in info.value.__notes__[0]


def test_an_error_about_a_file_still_names_it_when_raised_again() -> None:
    failure = failure_of(open, "/nowhere/at/all")

    with pytest.raises(FileNotFoundError) as info:
        failure.raise_exception()

    assert info.value.filename == "/nowhere/at/all"
    assert str(info.value) == failure.message


def local_error() -> Exception:
    class LocalError(Exception):
        pass

    return LocalError("odd")


def error_of(module: str, name: str) -> Exception:
    kind: type[Exception] = type(name, (Exception,), {"__module__": module, "__qualname__": name})
    return kind("odd")


@pytest.mark.parametrize(
    "error",
    [
        OddError("odd", datetime(2026, 1, 1, tzinfo=UTC)),
        OddError(["not", "plain"]),
        NeedsMoreError("one", "two"),
        local_error(),
        error_of("no.such.module", "Gone"),
        error_of("builtins", "print"),
        error_of("builtins", "Gone"),
        SystemExit(3),
        KeyboardInterrupt(),
    ],
    ids=repr,
)
def test_what_cannot_be_created_again_is_raised_as_a_failure_error(error: BaseException) -> None:
    failure = Failure(error)

    with pytest.raises(FailureError, match=re.escape(str(failure))) as info:
        failure.raise_exception()

    assert info.value.failure is failure
    assert isinstance(info.value, PerdureError)
    assert failure.traceback() in info.value.__notes__[0]


def test_a_subclass_of_a_plain_type_is_no_plain_argument() -> None:
    class Text(str):
        pass

    assert Failure(OddError(Text("odd"))).args is None
    assert Failure(OddError(True, 1, 1.5, None, "a", b"b", ((),))).args is not None


@pytest.mark.spec("J7")
def test_a_huge_message_is_cut_and_huge_arguments_are_not_kept() -> None:
    failure = Failure(UnicodeDecodeError("utf-8", b"\xff" * 100_000, 0, 1, "x" * 50_000))

    assert len(failure.message) == 10_000
    assert failure.message.endswith("…")
    assert failure.args is None
    assert len(pickle.dumps(failure)) < 15_000
