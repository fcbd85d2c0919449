"""Editing a clip: the request, the table of stages, the session that walks it, the plan that predicts it."""
