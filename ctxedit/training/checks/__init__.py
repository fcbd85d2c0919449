"""How well trained models do on held-out combinations of the drawn world: ``ctxedit models check``."""
