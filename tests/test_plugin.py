"""The pytest plugin, in runs of pytest of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = [pytest.mark.process, pytest.mark.slow]

APPLICATION = """
    from perdure.model import Job, local

    def send(name):
        return f"dear {name}"

    def place_order(name):
        local.get_queue().put(Job(send, name))

    def fail(text):
        raise ValueError(text)
"""


def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, test: str) -> pytest.RunResult:
    """Run tests with the plugin, whether it is installed or not; a warning is an error."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("PERDURE_TEST_ROOT", raising=False)
    pytester.makepyfile(shop=APPLICATION)
    pytester.makepyfile(test_shop=test)
    return pytester.runpytest_subprocess(
        "-p", "perdure.testing.plugin", "-W", "error", "-p", "no:cacheprovider", timeout=240
    )


def test_a_user_tests_jobs_with_nothing_but_the_fixture(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(
        pytester,
        monkeypatch,
        """
        from datetime import timedelta
        import pytest
        import shop
        from perdure.model import Job, NotStorableError, get_queue

        def in_this_module(number):
            return number + 1

        def test_performing(perdure_system):
            perdure_system.perform(shop.place_order, "ann")
            perdure_system.assert_enqueued(shop.send, args=["ann"])

        def test_a_job_of_the_module_of_the_tests(perdure_system):
            assert perdure_system.perform(in_this_module, 3) == 4

        def test_a_local_function(perdure_system):
            with pytest.raises(NotStorableError, match="lambda"):
                perdure_system.perform(lambda: 3)

        def test_time(perdure_system, perdure_clock):
            begun = perdure_clock.now()
            with perdure_system.transaction() as connection:
                job = Job(shop.send, "ann")
                get_queue(connection).put(job, begin_after=begun + timedelta(days=1))
            perdure_system.assert_enqueued(shop.send, within=timedelta(days=1))
            perdure_system.advance(timedelta(days=1))
            assert perdure_clock.now() - begun == timedelta(days=1)
            perdure_system.refute_enqueued()

        def test_each_test_has_a_system_of_its_own(perdure_system):
            perdure_system.refute_enqueued()
        """,
    )
    result.assert_outcomes(passed=5)


def test_settings_are_a_fixture_to_override(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(
        pytester,
        monkeypatch,
        """
        import pytest
        from perdure.model import get_queue

        @pytest.fixture
        def perdure_settings():
            return {"queues": {"mail": 2}}

        def test_queues(perdure_system):
            with perdure_system.transaction() as connection:
                assert get_queue(connection, "mail").name == "mail"
        """,
    )
    result.assert_outcomes(passed=1)


def test_a_failure_shows_what_is_enqueued_and_all_jobs(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(
        pytester,
        monkeypatch,
        """
        import shop

        def test_enqueued(perdure_system):
            perdure_system.put(shop.fail, "no")
            perdure_system.run_until_idle()
            perdure_system.put(shop.send, "bob")
            perdure_system.assert_enqueued(shop.send, args=["ann"])
        """,
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            ">       perdure_system.assert_enqueued(shop.send, args=*",
            "E       AssertionError: no job shop:send('ann') is enqueued",
            "E       enqueued are, nearest first:",
            "E         shop:send('bob') in queue '', due now (args differ)",
            "*jobs of perdure_system*",
            "shop:send('bob') in queue '': PENDING, due *",
            "shop:fail('no') in queue '': COMPLETED, failed: ValueError: no",
        ]
    )
    # The line of the test is what is shown, and nothing of how the system looks it up.
    assert "system.py" not in result.stdout.str()


def test_a_run_that_does_not_use_it_imports_nothing_of_it(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(
        pytester,
        monkeypatch,
        """
        import sys

        def test_nothing():
            assert "perdure.testing.plugin" in sys.modules
            assert not {"ZODB", "pykka", "perdure.model"} & {*sys.modules}
        """,
    )
    result.assert_outcomes(passed=1)


def test_what_tests_use_needs_no_pytest() -> None:
    code = (
        "import sys\n"
        "sys.modules['pytest'] = None\n"
        "from perdure.testing import *\n"
        "with SteppedSystem() as system:\n"
        "    assert system.perform(abs, -3) == 3\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240)
