"""What passes is tried again with waits that grow, what lasts is said at once; a reader skips nothing."""

from collections.abc import Callable

import pytest

from stores.cloud import again as module
from stores.cloud.again import again, is_passing
from stores.errors import ConnectionLost


class ClientPayloadError(Exception):
    """Named as aiohttp's."""


class Answer(Exception):
    """An answer with a status, as aiohttp's."""

    def __init__(self, status: int) -> None:
        super().__init__(str(status))
        self.status = status


def failing(times: int, error: Exception) -> Callable[[], str]:
    left = [times]

    def do() -> str:
        left[0] -= 1
        if left[0] >= 0:
            raise error
        return "found"

    return do


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr(module.time, "sleep", found.append)
    return found


@pytest.mark.parametrize(
    "error", [ConnectionResetError(), TimeoutError(), ClientPayloadError(), Answer(503), OSError()]
)
def test_what_passes_is_asked_for_again_after_waits_that_grow(error: Exception, waited: list[float]) -> None:
    assert is_passing(error)
    assert again(failing(4, error), "s3://a", "b.tar") == "found"
    assert len(waited) == 4
    assert waited == sorted(waited)


@pytest.mark.parametrize("error", [FileNotFoundError(), PermissionError(), Answer(403), Answer(416), ValueError()])
def test_what_lasts_is_not(error: Exception, waited: list[float]) -> None:
    with pytest.raises(type(error)):
        again(failing(1, error), "s3://a", "b.tar")
    assert waited == []


def test_in_the_end_it_is_said_what_to_do(waited: list[float]) -> None:
    with pytest.raises(
        ConnectionLost, match=r"s3://a: b\.tar cannot be read: ConnectionResetError: .* 6 times .*skipped"
    ):
        again(failing(6, ConnectionResetError("reset")), "s3://a", "b.tar")
    assert len(waited) == len(module.WAITS)
