"""Tasks: one file for each kind of model that can be trained."""
