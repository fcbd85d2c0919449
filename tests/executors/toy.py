"""Work for the executors' tests, where worker processes can import it."""

import os
import signal
import time


def wait_for(notes, jobs):
    """Return once these jobs have all begun, in whichever process."""
    file, wanted = notes / "done.txt", {str(job) for job in jobs}
    while not (file.exists() and wanted <= set(file.read_text().split())):
        time.sleep(0.1)


class Squares:
    """Squares numbers, and says in what state it was; see the arguments for what else happens.

    Args:
        notes: a folder; every job that begins is noted in its ``done.txt``.
        deadly, always: the process is killed, once or every time.
        fails: exceptions by job.
        slow: takes a minute.
        meet: wait for one another to begin, then for ``pause`` seconds.
    """

    def __init__(self, notes, deadly=(), always=(), fails=(), slow=(), meet=(), pause=0.0):
        self.notes, self.deadly, self.always, self.fails, self.slow = notes, deadly, always, fails, slow
        self.prepared, self.meet, self.pause = 0, meet, pause

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
        if job in self.meet:
            wait_for(self.notes, self.meet)
            time.sleep(self.pause)
        if job in self.slow:
            time.sleep(60)
        yield job * job
        yield {"threads": torch.get_num_threads(), "prepared": self.prepared, "pid": os.getpid()}
