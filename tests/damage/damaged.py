"""What tests of damage share: prompts, a listener, a file with one byte changed."""

from contextlib import contextmanager

from ctxedit.editing.reporter import Reporter

PROMPT, TARGET = "a tiger walking on the beach", "a panda walking on the beach"


class Listener(Reporter):
    """Which stages ran, and what was said."""

    def __init__(self):
        self.tasks, self.warned, self.said = [], [], []

    def warn(self, text):
        self.warned.append(text)

    def say(self, text):
        self.said.append(text)

    @contextmanager
    def task(self, name, total, unit="step"):
        self.tasks.append(name.split()[0])
        yield lambda done, note="": None


def changed(data):
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
