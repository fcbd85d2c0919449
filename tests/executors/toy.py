"""Work for the executors' tests, where worker processes can import it."""

import os
import signal
import time


class Squares:
    """Squares numbers; kills its own process at some, once each, and says what it was prepared for."""

    def __init__(self, notes, deadly=(), always=(), fails=(), slow=(), pause=0.0):
        self.notes, self.deadly, self.always, self.fails, self.slow = notes, deadly, always, fails, slow
        self.prepared, self.pause = 0, pause

    def prepare(self):
        self.prepared += 1

    def __call__(self, job, reporter):
        import torch

        with (self.notes / "done.txt").open("a") as stream:
            stream.write(f"{job}\n")
        reporter.warn(f"warned of {job}")
        if job in self.fails:
            raise self.fails[job]
        mark = self.notes / f"died at {job}"
        if job in self.always or (job in self.deadly and not mark.exists()):
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.pause)
        if job in self.slow:
            time.sleep(60)
        yield job * job
        yield {"threads": torch.get_num_threads(), "prepared": self.prepared, "pid": os.getpid()}
