"""Training tasks, a module each; one that is added here is found by ``tasks.base``."""
