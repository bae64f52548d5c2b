"""Gates of tests are the same for all threads."""

from __future__ import annotations

import threading

from support.once import MadeOnce


def test_two_threads_that_ask_at_once_get_the_same_value() -> None:
    both_make = threading.Barrier(2, timeout=20)

    def make() -> object:
        both_make.wait()
        return object()

    made: MadeOnce[str, object] = MadeOnce(make)
    got: list[object] = []
    threads = [threading.Thread(target=lambda: got.append(made["a"])) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got[0] is got[1] is made["a"]
