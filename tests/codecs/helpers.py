"""Pictures, a distance, and a look at processes, which several tests of codecs need."""

import time

import numpy as np
import psutil


def smooth_image(height: int, width: int) -> np.ndarray:
    """Slow waves of colour, uint8 RGB (height, width, 3), which every codec codes well at any size."""
    y, x = np.mgrid[:height, :width]
    return np.stack([128 + 100 * np.sin(x / 9), 128 + 90 * np.cos(y / 7), 128 + 60 * np.sin((x + y) / 11)], -1).astype(np.uint8)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two 8-bit images in dB, at most 138 dB."""
    return float(10 * np.log10(255**2 / max(np.mean((a.astype(float) - b) ** 2), 1e-9)))


def is_gone(pid: int, seconds: float = 60) -> bool:
    """Whether a process has ended or ends within this time. One that only waits to be reaped has ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False
