"""Where jobs run: in this process, in several on this machine, or on a Ray cluster; one interface for all."""

from ctxedit.executors.base import Executor, InProcess, Lost, Overseer, Work

__all__ = ["Executor", "InProcess", "Lost", "Overseer", "Work"]
