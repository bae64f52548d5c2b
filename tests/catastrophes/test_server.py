"""The server of the project."""

from __future__ import annotations

import pytest

from catastrophes import scenes
from catastrophes.conftest import Scene

pytestmark = [pytest.mark.process, pytest.mark.slow]


@pytest.mark.spec("C2")
def test_a_server_that_was_killed_hands_out_no_id_again(scene: Scene) -> None:
    before = scene.put(scenes.note, "before")
    with scene.database.transaction() as connection:
        # Fetched in advance, with many others, and not committed by anybody.
        last_known = int.from_bytes(connection.new_oid(), "big") + 1000
    assert scene.stage.server is not None
    scene.stage.server.kill()
    scene.stage.start_server()
    scene.connect()
    after = scene.put(scenes.note, "after")
    assert before.oid < last_known < after.oid
