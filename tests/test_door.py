"""What every command does before its work."""

import pytest

from raymlc.door import guarded


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "1000"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None), ({"GOMP_SPINCOUNT": "7"}, "7")],
)
def test_threads_of_a_command_leave_cores_to_others_unless_the_user_says_how_they_wait(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], spins: str | None
) -> None:
    environment = dict(given)
    monkeypatch.setattr("raymlc.door.os.environ", environment)
    assert guarded(lambda: 0) == 0
    assert environment.get("GOMP_SPINCOUNT") == spins
