"""The check that runs after every test notices what it is there for."""

from __future__ import annotations

import signal
import socket
import threading

import pykka

from support.leftovers import Held, leftovers


def test_nothing_is_left_over_by_nothing():
    assert leftovers(Held.now()) == []


def test_a_file_that_is_still_open_is_noticed(tmp_path):
    before = Held.now()

    with open(tmp_path / "left.txt", "w"):
        found = leftovers(before)

    assert len(found) == 1 and "left.txt" in found[0]


def test_a_socket_that_is_still_open_is_noticed():
    before = Held.now()

    with socket.socket():
        found = leftovers(before)

    assert len(found) == 1 and "socket" in found[0]


def test_a_further_descriptor_of_a_file_that_was_open_is_no_leftover(tmp_path):
    with open(tmp_path / "pool.txt", "w") as first:
        before = Held.now()

        with open(first.name):
            assert leftovers(before) == []


def test_a_thread_that_is_still_alive_is_noticed(monkeypatch):
    monkeypatch.setattr("support.leftovers.GRACE_SECONDS", 0)
    before = Held.now()
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name="left behind")
    thread.start()

    found = leftovers(before)
    end.set()
    thread.join()

    assert len(found) == 1 and "left behind" in found[0]


def test_a_thread_that_is_about_to_end_is_no_leftover():
    before = Held.now()
    end = threading.Event()
    threading.Thread(target=end.wait).start()
    end.set()

    assert leftovers(before) == []


def test_an_actor_that_was_not_stopped_is_noticed_and_stopped():
    class Forgotten(pykka.ThreadingActor):
        pass

    before = Held.now()
    actor = Forgotten.start()

    found = leftovers(before)

    assert "Forgotten" in found[0]
    assert actor.actor_stopped.wait(20)


def test_a_handler_that_was_left_is_noticed_and_put_back():
    before = Held.now()
    signal.signal(signal.SIGUSR1, lambda number, frame: None)

    found = leftovers(before)

    assert len(found) == 1 and "handler of SIGUSR1" in found[0]
    assert signal.getsignal(signal.SIGUSR1) == before.handlers[signal.SIGUSR1]
