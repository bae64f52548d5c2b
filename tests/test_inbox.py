"""Inboxes: how producers stay out of each other's way, and what frees an inbox."""

from __future__ import annotations

import gc
import os
import secrets
import threading
import weakref

import pytest
import transaction
from transaction.interfaces import TransientError
from ZEO.Exceptions import ClientDisconnected
from ZODB.POSException import ConflictError

from perdure.model import Job, environment, get_queue, install
from perdure.model.inbox import (
    BUNDLED,
    INBOXES_AT_FIRST,
    ROTATE_AFTER,
    Inbox,
    InboxTable,
    Leases,
)
from perdure.model.stripe import LineKey
from support.callables import echo, fail, nothing
from support.world import MINUTE, View

SILENCE = 11 * MINUTE


def numbers(view):
    return sorted(job.args[0] for job in view.queue)


def used(view):
    """The keys of the inboxes that hold something, or did."""
    return [key for key, inbox in view.queue.inboxes.items() if inbox.entries]


# Leases


@pytest.mark.spec("Q7")
def test_transactions_that_put_at_once_have_inboxes_of_their_own(file_world):
    views = [file_world.view() for _ in range(10)]
    for round in range(3):
        for number, view in enumerate(views):
            view.queue.put(Job(echo, 10 * round + number))
        for view in views:
            view.commit()
    views[0].sync()
    assert numbers(views[0]) == list(range(30))
    assert len(used(views[0])) >= 10


@pytest.mark.spec("Q7")
def test_transactions_one_after_the_other_share_an_inbox_up_to_a_number_of_jobs(view):
    for number in range(ROTATE_AFTER):
        view.put(echo, number)
    assert len(used(view)) == 1
    view.put(echo, 0)
    assert len(used(view)) == 2


@pytest.mark.spec("Q7", "Q3")
def test_inboxes_are_rotated_through_so_that_every_stripe_gets_jobs(view):
    for _ in range(INBOXES_AT_FIRST):
        for _ in range(ROTATE_AFTER):
            view.queue.put(echo)
        view.commit()
    assert len(used(view)) == INBOXES_AT_FIRST
    assert {inbox.stripe for _, inbox in view.queue.inboxes.items()} == {0, 1, 2, 3}


@pytest.mark.spec("Q7")
def test_a_transaction_that_began_before_the_inbox_was_last_written_takes_another(file_world):
    early, late = file_world.view(), file_world.view()
    early.queue.put(Job(echo, 0))
    early.commit()
    late.sync()
    late.put(echo, 1)
    late.put(echo, 2)
    # `early` sees the inbox as it was.
    early.queue.put(Job(echo, 3))
    early.commit()
    assert numbers(early) == [0, 1, 2, 3]
    assert len(used(early)) == 2


@pytest.mark.spec("Q7")
def test_an_aborted_transaction_gives_its_inbox_back(view):
    view.put(echo, 0)
    for _ in range(5):
        view.queue.put(Job(echo, 1))
        view.abort()
    view.put(echo, 2)
    assert numbers(view) == [0, 2]
    assert len(used(view)) == 1


@pytest.mark.spec("Q7")
def test_a_transaction_that_is_begun_anew_gives_its_inbox_back(view):
    view.queue.put(Job(echo, 1))
    view.manager.begin()
    view.put(echo, 2)
    assert numbers(view) == [2]
    assert environment(view.world.database).leases._leases == {}


@pytest.mark.spec("Q7")
def test_a_failed_commit_gives_its_inbox_back_and_harms_nobody(world):
    one, two = world.view(), world.view()
    one.connection.root()["shared"] = 0
    one.commit()
    for number in range(5):
        one.sync(), two.sync()
        one.queue.put(Job(echo, number))
        two.queue.put(Job(echo, 100 + number))
        one.connection.root()["shared"] = number
        two.connection.root()["shared"] = -number - 1
        one.commit()
        with pytest.raises(ConflictError):
            two.manager.commit()
        two.abort()
        # A view of before somebody wrote the inbox that the failed one had.
        old = world.view()
        two.put(echo, 200 + number)
        old.queue.put(Job(echo, 300 + number))
        old.commit()
        old.close()
    one.sync()
    assert numbers(one) == [hundred + n for hundred in (0, 200, 300) for n in range(5)]


class _FailsLate:
    """A data manager whose commit fails after the vote: the worst moment."""

    transaction_manager = None

    def abort(self, transaction):
        pass

    tpc_begin = commit = tpc_finish = tpc_abort = abort

    def tpc_vote(self, transaction):
        raise OSError("no vote")

    def sortKey(self):  # noqa: N802
        return "~last"


@pytest.mark.spec("Q7")
def test_a_commit_that_another_data_manager_refuses_leaves_no_job(view):
    view.put(echo, 0)
    view.queue.put(Job(echo, 1))
    view.manager.get().join(_FailsLate())
    with pytest.raises(OSError, match="no vote"):
        view.manager.commit()
    view.abort()
    view.put(echo, 2)
    assert numbers(view) == [0, 2]
    assert len(used(view)) == 1


@pytest.mark.spec("Q7", "Q2")
def test_a_savepoint_that_is_rolled_back_takes_its_puts_back(view):
    view.queue.put(Job(echo, 0))
    savepoint = view.manager.savepoint()
    view.queue.put(Job(echo, 1))
    view.queue.put(Job(echo, 2))
    savepoint.rollback()
    view.queue.put(Job(echo, 3))
    view.commit()
    view.put(echo, 4)
    assert numbers(view) == [0, 3, 4]
    assert len(used(view)) == 1


@pytest.mark.spec("Q7", "Q2")
def test_a_savepoint_from_before_the_first_put_takes_even_the_inbox_back(view):
    savepoint = view.manager.savepoint()
    view.queue.put(Job(echo, 1))
    savepoint.rollback()
    view.queue.put(Job(echo, 2))
    view.commit()
    view.put(echo, 3)
    assert numbers(view) == [2, 3]
    assert len(used(view)) == 1


@pytest.mark.spec("Q7")
def test_a_put_by_a_hook_before_the_commit_counts_too(view):
    for number in range(5):
        view.queue.put(Job(echo, number))
        view.manager.get().addBeforeCommitHook(
            lambda number=number: view.queue.put(Job(echo, 10 + number))
        )
        view.commit()
    assert len(numbers(view)) == 10
    assert len(used(view)) == 1


def test_a_thread_that_ends_without_commit_and_abort_gives_its_inbox_back(world, view):
    view.put(echo, 0)
    before = used(view)

    def put() -> weakref.ref[object]:
        manager = transaction.TransactionManager()
        connection = world.database.open(transaction_manager=manager)
        manager.begin()
        get_queue(connection).put(echo, begin_after=None)
        return weakref.ref(manager.get())

    forgotten = [put() for _ in range(20)]
    gc.collect()
    assert [each() for each in forgotten] == [None] * 20
    leases = environment(world.database).leases
    for number in range(1, INBOXES_AT_FIRST + 1):
        view.put(echo, number)
    assert set(before) <= set(used(view))
    assert len(leases._leases) == 0
    assert sum(leases._made.values()) == sum(map(len, leases._free.values()))


@pytest.mark.spec("Q7")
def test_two_queues_have_inboxes_of_their_own(world, view):
    install(world.database, ["mail"])
    mail = View(world, world.database, "mail")
    view.sync()
    view.queue.put(Job(echo, 1))
    mail.queue.put(Job(echo, 2))
    view.commit(), mail.commit()
    assert (numbers(view), numbers(mail)) == ([1], [2])
    mail.close()


@pytest.mark.spec("Q7")
def test_threads_that_put_in_step_do_not_share_an_inbox(file_world):
    failed: list[BaseException] = []
    gate = threading.Barrier(4)

    def work(first):
        connection = file_world.database.open()
        try:
            for number in range(first, first + 20):
                gate.wait(30)
                transaction.begin()
                get_queue(connection).put(Job(echo, number))
                gate.wait(30)
                transaction.commit()
        except BaseException as error:
            failed.append(error)
            gate.abort()
        finally:
            transaction.abort()
            connection.close()

    threads = [threading.Thread(target=work, args=(20 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failed == []
    assert numbers(file_world.view()) == list(range(80))


@pytest.mark.spec("Q7")
def test_a_forked_process_uses_other_inboxes():
    leases = Leases(secrets)
    before = leases._token, dict(leases._made)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            leases._renew_after_fork()
            os.write(write, leases._token.encode())
        finally:
            os._exit(0)
    os.close(write)
    token = os.read(read, 100).decode()
    os.close(read)
    assert os.waitpid(child, 0)[1] == 0
    assert token and token != leases._token
    leases._renew_after_fork()
    assert (leases._token, leases._made) == before


# Claiming beside putting


@pytest.mark.spec("Q7")
def test_putting_conflicts_neither_with_claiming_nor_with_completing(world):
    producer, dispatcher = world.view(), world.view()
    agent = dispatcher.agent(size=100)
    producer.sync()
    producer.put(echo, 0)
    for number in range(1, 20):
        dispatcher.sync()
        producer.queue.put(Job(echo, number))
        job = agent.claim_job()
        assert job is not None
        producer.commit()
        dispatcher.commit()
        dispatcher.begin(job)
        producer.queue.put(Job(echo, 100 + number))
        job._end(None)
        job._complete()
        agent.settle_all()
        dispatcher.commit()
        producer.commit()


@pytest.mark.spec("Q7", "Q5")
def test_a_claimed_job_keeps_none_of_those_before_it_alive(view):
    for number in range(3):
        view.put(echo, number)
    jobs = [view.claim() for _ in range(3)]
    assert [job._previous for job in jobs] == [None, None, None]


# Retiring


@pytest.mark.spec("Q7")
def test_an_inbox_that_was_silent_for_long_is_dropped_in_two_steps(world, view):
    view.put(echo, 0)
    view.claim()
    world.advance(SILENCE)
    view.queue.sweep_inboxes()
    view.commit()
    assert len(view.queue.inboxes) == 1
    view.queue.sweep_inboxes()
    view.commit()
    assert len(view.queue.inboxes) == 0
    view.put(echo, 1)
    assert numbers(view) == [1]
    assert all(len(stripe._cursors) <= 1 for stripe in view.queue.stripes)


@pytest.mark.spec("Q7")
def test_an_inbox_with_jobs_that_are_not_sorted_in_or_lately_used_is_kept(world, view):
    view.put(echo, 0)
    world.advance(SILENCE)
    for _ in range(2):
        view.queue.sweep_inboxes()
        view.commit()
    assert numbers(view) == [0]
    view.claim()
    world.advance(SILENCE)
    view.put(echo, 1)
    view.claim(view.agent())
    for _ in range(2):
        view.queue.sweep_inboxes()
        view.commit()
    assert len(view.queue.inboxes) == 1


@pytest.mark.spec("Q7")
def test_an_inbox_that_another_process_has_dropped_is_not_waited_for(file_world):
    view, old = file_world.view(), file_world.view()
    old.put(echo, 0)
    view.sync()
    view.put(echo, 1)
    view.claim(), view.claim()
    file_world.advance(SILENCE)
    for _ in range(2):
        view.queue.sweep_inboxes()
        view.commit()
    assert len(view.queue.inboxes) == 0
    for number in range(3):
        view.put(echo, number)
    assert numbers(view) == [0, 1, 2]
    leases = environment(file_world.database).leases
    assert len(leases._free[view.queue._p_oid]) == INBOXES_AT_FIRST - 1


@pytest.mark.spec("Q7")
def test_a_put_between_the_two_steps_keeps_the_inbox(world, view):
    view.put(echo, 0)
    view.claim()
    world.advance(SILENCE)
    view.queue.sweep_inboxes()
    view.commit()
    view.put(echo, 1)
    view.claim()
    view.queue.sweep_inboxes()
    view.commit()
    assert [inbox.retiring for _, inbox in view.queue.inboxes.items()] == [False]


@pytest.mark.spec("Q7")
@pytest.mark.parametrize("first", ["put", "mark"])
def test_a_put_and_the_mark_for_retirement_do_not_conflict(file_world, first, caplog):
    view, sweeper = file_world.view(), file_world.view()
    view.put(echo, 0)
    view.claim()
    file_world.advance(SILENCE)
    sweeper.sync()
    view.queue.put(Job(echo, 1))
    sweeper.queue.sweep_inboxes()
    for each in (view, sweeper) if first == "put" else (sweeper, view):
        each.commit()
    view.sync()
    assert numbers(view) == [1]
    assert [inbox.retiring for _, inbox in view.queue.inboxes.items()] == [False]
    assert caplog.records == []


@pytest.mark.spec("Q7")
@pytest.mark.parametrize("first", ["put", "drop"])
def test_of_a_put_and_the_end_of_its_inbox_one_fails(file_world, first):
    view, sweeper = file_world.view(), file_world.view()
    view.put(echo, 0)
    view.claim()
    file_world.advance(SILENCE)
    sweeper.sync()
    sweeper.queue.sweep_inboxes()
    sweeper.commit()
    view.sync()
    view.queue.put(Job(echo, 1))
    sweeper.queue.sweep_inboxes()
    winner, loser = (view, sweeper) if first == "put" else (sweeper, view)
    winner.commit()
    with pytest.raises(TransientError):
        loser.manager.commit()
    loser.abort()
    if first == "drop":
        view.put(echo, 1)
    assert numbers(view) == [1]


@pytest.mark.spec("Q7")
@pytest.mark.parametrize("before", [0, 1])
def test_a_put_whose_commit_raised_and_took_place_is_not_lost_to_the_next_one(
    file_world, before, monkeypatch
):
    first = file_world.view()
    for _ in range(before):
        first.put(echo, 0)
    second = file_world.view()
    storage = first.connection._normal_storage._storage
    real = storage.tpc_finish

    def tpc_finish(*args):
        monkeypatch.undo()
        real(*args)
        raise ClientDisconnected("lost")

    monkeypatch.setattr(storage, "tpc_finish", tpc_finish)
    first.queue.put(Job(echo, 1))
    with pytest.raises(ClientDisconnected):
        first.commit()
    first.abort()
    # It does not see that one, and may be given the same inbox.
    second.queue.put(Job(echo, 2))
    with pytest.raises(ConflictError):
        second.commit()
    second.abort()
    second.put(echo, 2)
    first.sync()
    assert sorted(job.args[0] for job in first.queue) == [0] * before + [1, 2]


# Conflict resolution, without a database


def state(**values):
    """An inbox as it is stored."""
    return Inbox._numbered({"stripe": 0, **values})


@pytest.mark.spec("Q7")
def test_an_inbox_resolves_a_mark_and_nothing_else():
    inbox = Inbox(0)
    old, put = state(head="1", entries=1), state(head="2", entries=2)
    mark = state(head="1", entries=1, retiring=True)
    assert inbox._p_resolveConflict(old, put, mark) == put
    assert inbox._p_resolveConflict(old, mark, put) == put
    gone = state(head="1", entries=1, retiring=True, gone=True)
    for there, here in [(put, put), (put, gone), (gone, put)]:
        with pytest.raises(ConflictError):
            inbox._p_resolveConflict(old, there, here)


@pytest.mark.spec("Q7")
def test_a_table_resolves_additions_and_removals_of_both_sides():
    table = InboxTable()

    def of(*keys, **more):
        return {"_inboxes": dict.fromkeys(keys, "an inbox"), **more}

    merged = table._p_resolveConflict(of("a", "b", "c"), of("a", "c", "d"), of("b", "c", "e"))
    assert merged == of("c", "d", "e")
    for there, here in [(of("b", closed=True), of()), (of("b"), of("a", closed=True))]:
        with pytest.raises(ConflictError, match="removed"):
            table._p_resolveConflict(of("a"), there, here)


# Bundles


def put_in_order(view, *numbers):
    """Put jobs, without a commit."""
    return [view.queue.put(Job(echo, number)) for number in numbers]


def bundles(view):
    """The numbers of jobs in each bundle that holds some, of all inboxes."""
    found = []
    for inbox, cursor in view.queue.unsorted():
        found += [len(bundle) for bundle in inbox.bundles(cursor)]
    return sorted(found)


def order(view):
    return [job.args[0] for job in view.queue]


@pytest.mark.spec("Q7", "Q3")
def test_what_one_transaction_puts_is_in_bundles_and_is_sorted_in_without_being_loaded(view):
    made = put_in_order(view, *range(300))
    view.commit()
    assert bundles(view) == [43, BUNDLED, BUNDLED]
    assert order(view) == list(range(300)) and len(view.queue) == 300
    newest_first = [each.job.args[0] for each in view.queue.waiting(unsorted_limit=0)]
    assert newest_first == list(range(299, -1, -1))
    view.connection.cacheMinimize()
    view.queue._sort_in()
    # The first one is not in a bundle.
    assert [job._p_state for job in made[1:]] == [-1] * 299
    view.commit()
    assert bundles(view) == []
    assert order(view) == list(range(300))
    assert view.world.check() == []


@pytest.mark.spec("Q7", "Q3")
def test_jobs_of_several_kinds_are_put_in_one_bundle_and_keep_their_lines_and_order(view):
    view.queue.quotas.create("one")
    made = []
    for number in range(60):
        kind = (echo, nothing, fail)[number // 3 % 3]
        made.append(view.queue.put(Job(kind, number)))
        if number % 7 == 0:
            limited = Job(kind, number)
            limited.quota_names = ("one",)
            made.append(view.queue.put(limited))
    view.commit()
    [inbox] = [inbox for inbox, _ in view.queue.unsorted()]
    # After each that is linked, since it needs a quota, there is another one.
    assert len(inbox.bundles(0)) == 9
    assert list(view.queue) == made
    assert view.world.check() == []
    view.queue._sort_in()
    view.commit()
    assert list(view.queue) == made
    assert view.world.check() == []


@pytest.mark.spec("Q7", "Q3", "Q2")
def test_moments_in_the_past_and_in_the_future_hold_in_bundles(world, view):
    now = world.clock.now()
    made = {}
    for number, minutes in enumerate((0, 5, -5, 0, 1, -1, 5, 0)):
        made[number] = view.queue.put(Job(echo, number), begin_after=now + minutes * MINUTE)
    view.commit()
    expected = [0, 2, 3, 5, 7, 4, 1, 6]
    assert order(view) == expected
    assert world.check() == []
    view.queue._sort_in()
    view.commit()
    assert order(view) == expected
    assert world.check() == []
    agent = view.agent(size=100)
    claimed = []
    while (job := view.claim(agent)) is not None:
        claimed.append(job.args[0])
    assert claimed == [0, 2, 3, 5, 7]


@pytest.mark.spec("Q7", "Q2")
@pytest.mark.parametrize("kept", [0, 1, 2, 3])
@pytest.mark.parametrize("minimized", [False, True])
def test_a_savepoint_that_is_rolled_back_takes_jobs_out_of_bundles(view, kept, minimized):
    view.put(echo, 0)
    put_in_order(view, *range(1, kept + 1))
    savepoint = view.manager.savepoint()
    if minimized:
        view.connection.cacheMinimize()
    put_in_order(view, 10, 11, 12)
    savepoint.rollback()
    put_in_order(view, 20, 21)
    view.commit()
    put_in_order(view, 30, 31)
    view.commit()
    expected = [0, *range(1, kept + 1), 20, 21, 30, 31]
    assert order(view) == expected
    assert view.world.check() == []
    view.queue._sort_in()
    view.commit()
    assert order(view) == expected


@pytest.mark.spec("Q7", "Q5")
@pytest.mark.parametrize("place", [0, 1, 2])
def test_put_and_removed_and_put_again_in_one_transaction(view, place):
    made = put_in_order(view, 0, 1, 2)
    view.queue.remove(made[place])
    put_in_order(view, 3)
    view.queue.put(made[place])
    put_in_order(view, 4)
    expected = [n for n in range(4) if n != place] + [place, 4]
    assert order(view) == expected
    view.commit()
    assert order(view) == expected
    assert view.world.check() == []
    view.queue._sort_in()
    view.commit()
    assert order(view) == expected


@pytest.mark.spec("Q7", "Q3")
def test_bundles_and_single_jobs_may_alternate(file_world):
    views = [file_world.view() for _ in range(3)]
    put = 0
    for round in range(4):
        for each in views:
            number = 1 if (round + len(views)) % 2 else 3
            each.sync()
            put_in_order(each, *range(put, put + number))
            put += number
            each.commit()
        if round == 1:
            views[0].sync()
            views[0].queue._sort_in()
            views[0].commit()
    views[0].sync()
    assert order(views[0]) == list(range(put))
    views[0].queue._sort_in()
    views[0].commit()
    assert order(views[0]) == list(range(put))


@pytest.mark.spec("Q7")
def test_of_two_who_sort_in_at_once_one_fails_and_nothing_is_lost(file_world):
    one, two, producer = (file_world.view() for _ in range(3))
    put_in_order(producer, *range(5))
    producer.commit()
    one.sync(), two.sync()
    # Its transaction began before, and is committed behind them.
    put_in_order(producer, 5, 6, 7)
    for each in (one, two):
        each.queue._sort_in()
    one.commit()
    with pytest.raises(ConflictError):
        two.commit()
    two.abort()
    producer.commit()
    put_in_order(producer, 8, 9)
    producer.commit()
    two.sync()
    two.queue._sort_in()
    two.commit()
    assert order(two) == list(range(10))


@pytest.mark.spec("Q7")
def test_a_put_does_not_write_the_bundle_of_another_transaction(file_world):
    first, sorter = file_world.view(), file_world.view()
    put_in_order(first, 0, 1, 2)
    first.commit()
    # One that has not loaded it.
    second = file_world.view()
    sorter.sync()
    put_in_order(second, 3, 4)
    sorter.queue._sort_in()
    sorter.commit()
    second.commit()
    assert order(second) == list(range(5))


@pytest.mark.spec("Q7")
def test_a_commit_that_fails_leaves_no_bundle_and_its_inbox_is_used_again(view):
    put_in_order(view, 0, 1, 2)
    view.manager.get().join(_FailsLate())
    with pytest.raises(OSError, match="no vote"):
        view.manager.commit()
    view.abort()
    put_in_order(view, 3, 4, 5)
    view.commit()
    assert order(view) == [3, 4, 5]
    assert len(used(view)) == 1


@pytest.mark.spec("Q7")
def test_an_inbox_whose_last_ones_were_in_a_bundle_is_dropped_once_it_was_silent(world, view):
    put_in_order(view, 0, 1, 2)
    view.commit()
    agent = view.agent(size=9)
    for _ in range(3):
        view.claim(agent)
    for _ in range(2):
        view.queue.sweep_inboxes()
        view.commit()
    assert len(view.queue.inboxes) == 1
    world.advance(SILENCE)
    for _ in range(2):
        view.queue.sweep_inboxes()
        view.commit()
    assert len(view.queue.inboxes) == 0


@pytest.mark.spec("J10", "J11", "Q5", "J17")
@pytest.mark.parametrize("change", ["begin_by", "quota_names", "cancel", "remove", "retry"])
def test_what_is_done_to_a_job_in_a_bundle_holds(view, change):
    view.queue.quotas.create("one")
    made = put_in_order(view, 0, 1, 2)
    view.commit()
    job = made[1]
    if change == "begin_by":
        job.begin_by = MINUTE
    elif change == "quota_names":
        job.quota_names = ("one",)
    elif change == "remove":
        view.queue.remove(job)
    else:
        getattr(job, change)()
    view.commit()
    assert view.world.check() == []
    expected = {"cancel": [0, 2], "remove": [0, 2], "retry": [1, 0, 2]}.get(change, [0, 1, 2])
    # One that is cancelled is seen to by a job of its own.
    assert [job.args[0] for job in view.queue if type(job) is Job] == expected


@pytest.mark.spec("Q7", "Q5")
def test_nothing_that_was_put_keeps_what_was_put_before_it_alive(world, view):
    made = put_in_order(view, 0, 1, 2)
    view.commit()
    view.put(echo, 3)
    put_in_order(view, 4, 5)
    view.commit()
    inbox = next(iter(view.queue.unsorted()))[0]
    all_of_them = inbox.bundles(0)
    assert [len(bundle) for bundle in all_of_them] == [1, 2]
    view.queue._sort_in()
    view.commit()
    assert [(len(each), each.previous, each.puts()) for each in all_of_them] == [(0, None, [])] * 2
    agent = view.agent(size=9)
    for _ in range(6):
        view.claim(agent)
    assert [job._previous for job in [*made, *agent]] == [None] * 9


@pytest.mark.spec("Q7")
def test_a_job_that_comes_back_into_a_bundle_keeps_nothing_alive(view):
    view.put(echo, 0)
    job = view.put(echo, 1)
    assert job._previous is not None
    agent = view.agent(size=9)
    view.queue._sort_in()
    agent.claim_jobs(lambda name: True, {}, is_brief=lambda name: True)
    view.commit()
    job._begin()
    view.commit()
    assert job._previous is None


@pytest.mark.spec("Q7")
def test_what_was_put_before_there_were_bundles_is_claimed_with_the_rest(view, monkeypatch):
    with monkeypatch.context() as former:
        former.setattr(Inbox, "is_open", False)
        put_in_order(view, 0, 1, 2)
        view.commit()
    assert bundles(view) == []
    put_in_order(view, 3, 4)
    view.commit()
    # A line as it was stored before there were batches.
    assert LineKey(*tuple(LineKey(group="a:b"))[:-1]) == LineKey(group="a:b")
    assert order(view) == list(range(5))
    agent = view.agent(size=9)
    assert [view.claim(agent).args[0] for _ in range(5)] == list(range(5))


@pytest.mark.spec("Q7")
@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda bundle: bundle._jobs.pop(), "has 1 jobs, positions for 2 and lines for 1"),
        (lambda bundle: bundle._kinds.append(0), "has 2 jobs, positions for 2 and lines for 1"),
        (lambda bundle: bundle._more.pop(), "has 2 jobs, positions for 1.5 and lines for 2"),
        (lambda bundle: bundle._more.__setitem__(-1, 77), "in a bundle of inbox"),
        (lambda bundle: bundle.empty(), "end 3 jobs too early"),
    ],
)
def test_a_damaged_bundle_is_told(file_world, damage, text):
    view = file_world.view()
    put_in_order(view, 0, 1, 2)
    view.commit()
    [bundle] = next(iter(view.queue.unsorted()))[0].bundles(0)
    before = bundle.__getstate__()
    before = {key: list(v) if isinstance(v, list) else v for key, v in before.items()}
    damage(bundle)
    bundle._p_changed = True
    view.commit()
    found = file_world.check()
    bundle.__setstate__(before)
    bundle._p_changed = True
    view.commit()
    assert any(text in each for each in found), found
    assert file_world.check() == []
