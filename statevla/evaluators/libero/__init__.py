"""Success in the LIBERO simulator.

chunks.py    which actions of which predicted chunk are executed
controls.py  what is evaluated beside policies: the expert, and demonstrations replayed
trials.py    which episodes there are, which are finished (a log that survives), resume
runner.py    simulators, policy and trials put together
results.py   success with intervals, as JSON, Markdown and a page
"""

from statevla.evaluators.libero.evaluate import evaluate_libero
from statevla.evaluators.libero.results import LiberoResults
from statevla.policies.controls import ExpertControl, ReplayDemo, ReplayDemos

__all__ = ["ExpertControl", "LiberoResults", "ReplayDemo", "ReplayDemos", "evaluate_libero"]
