"""``python -m statevla.documents.run_libero_eval --checkpoint … --task_suite libero_object --num_trials 50``."""

from collections.abc import Sequence
from typing import Final

from statevla.documents.flags import Flag, call, parse, words

FLAGS: Final = (
    Flag("checkpoint", "policy to evaluate", ("--checkpoint", "{}"), required=True),
    Flag("task_suite", "such as libero_object", ("--suite", "{}")),
    Flag("num_trials", "trials a task", ("--num-trials", "{}")),
)


def run(argv: Sequence[str] | None = None) -> None:
    """Success in the LIBERO simulator."""
    given = parse("statevla.documents.run_libero_eval", "Evaluate a policy in LIBERO.", FLAGS, argv)
    call(["eval", "libero", *words(FLAGS, given)])


if __name__ == "__main__":
    run()
