"""What pushes the hand off its way while an expert demonstrates, so that the way back is in the data.

DART (Laskey et al., 2017) adds noise to every executed action. Noise that never ends keeps a hand from ever being where
it must be before it closes, so the expert hovers, open, and a policy without memory learns to hover. So the noise comes
in pushes, and between them the hand gets there.
"""

import numpy as np
from numpy.typing import NDArray

PUSH_STEPS, PAUSE_STEPS = 6, 14
"""Mean lengths, both geometrically distributed."""
DRIFT = 0.8
"""Share of a step's noise that stays in the next: a push goes one way instead of trembling."""
SHARES = np.array([1.0, 1.0, 1.0, 0.3, 0.3, 0.3])
"""Of the noise, for each part of a pose's action: a turned hand loses its grip sooner than a moved one."""


class Pushes:
    """AR(1) noise [6] with coefficient ``DRIFT`` and standard deviation ``noise * SHARES`` in action units while a push
    lasts, zero in the pauses; begins with a pause. The same rng gives the same pushes.
    """

    def __init__(self, noise: float, rng: np.random.Generator) -> None:
        self._noise, self._rng = noise, rng
        self._drift = np.zeros(6)
        self._pushing = False

    def next(self) -> NDArray[np.float64]:
        """What is added to the next step's action."""
        turned = self._rng.random() < 1 / (PUSH_STEPS if self._pushing else PAUSE_STEPS)
        self._pushing = self._pushing != turned
        self._drift = DRIFT * self._drift + np.sqrt(1 - DRIFT**2) * self._rng.normal(0.0, 1.0, 6)
        return self._noise * self._drift * SHARES if self._pushing else np.zeros(6)
