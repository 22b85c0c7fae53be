"""Train slowly in all processes until a signal comes; test_stopping.py runs this under torchrun and sends one."""

import sys
import time
from pathlib import Path

from grey import Listener, run

from icmbench.codecs.training.stopping import TrainingStopped


class SlowListener(Listener):
    """Says where a run resumes."""

    def tell(self, sentence):
        print(sentence, flush=True)


if __name__ == "__main__":
    photos, out, pause = sys.argv[1:]
    listener = SlowListener(lambda done: time.sleep(float(pause)))
    try:
        run(Path(photos), Path(out), listener=listener, steps=60, batch=4, noise=0.1, ema=0.5, checkpoint_every=7, workers=1)
    except TrainingStopped as stop:
        print(stop, flush=True)
        sys.exit(130)
