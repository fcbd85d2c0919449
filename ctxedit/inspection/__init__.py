"""Figures of what happens inside a run: where each word attends, and how a tuning went."""
