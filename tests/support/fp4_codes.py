"""E2M1's numbers, times two: what the kernels' codes are."""

from __future__ import annotations

import numpy as np

DOUBLED_E2M1 = np.array([0, 1, 2, 3, 4, 6, 8, 12, -1, -2, -3, -4, -6, -8, -12], np.int8)
