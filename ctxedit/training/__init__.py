"""Training of the built-in models.

A recipe (``recipes/*.toml``) names a task (``tasks``) with settings, data (``data``) and a schedule.
A ``Training`` (``job``) builds the task, has the loop (``loop``) train it, and writes the record (``record``)
next to the weights. ``policy`` decides what a command may discard or replace; ``check`` measures the results.
"""
