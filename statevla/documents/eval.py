"""``python -m statevla.documents.eval --checkpoint …/checkpoint_best.pt``, as the StateVLA documents write it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from statevla.documents.flags import Flag, call, fail, parse, words
from statevla.runs.state import read_state
from statevla.systems.find import find_policy
from stores.errors import StateVLAError

FLAGS: Final = (
    Flag("checkpoint", "policy to evaluate", ("--checkpoint", "{}"), required=True),
    Flag("store", "store folder or URL; not given: the one that it was trained on"),
)


def run(argv: Sequence[str] | None = None) -> None:
    """Compare predicted chunks with the demonstrations'."""
    given = parse("statevla.documents.eval", "Evaluate a policy offline.", FLAGS, argv)
    try:
        trained_on = read_state(find_policy(Path(given["checkpoint"]))).config["data"]["store"]
    except StateVLAError as error:
        fail(error)
    call(["eval", "offline", *words(FLAGS, given), "--store", given.get("store", str(trained_on))])


if __name__ == "__main__":
    run()
