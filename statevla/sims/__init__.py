"""Worlds to close the loop in: ``tabletop`` (NumPy toy suite with a scripted expert)."""

from statevla.sims.tabletop import TASKS, TabletopEnv, task_name
from statevla.sims.tabletop_expert import TabletopExpert

__all__ = ["TASKS", "TabletopEnv", "TabletopExpert", "task_name"]
