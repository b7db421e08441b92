"""Errors about the simulator itself. None of them is ever a policy's failure."""

from stores.errors import StateVLAError, UsageError


class SimulatorMissing(StateVLAError):
    """The simulator, its assets or OpenGL is not installed."""


class SimulatorVersion(StateVLAError):
    """A package of the simulator has a version that would change what the policy sees."""


class SimulatorFailed(StateVLAError):
    """A worker raised, died or did not answer in time. Its episode is an error, neither success nor failure."""


class UnknownTask(UsageError):
    """A suite or a task of it that does not exist."""
