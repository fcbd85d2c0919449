"""``ctxedit bench speed``: time, memory and operations of ways to edit and to tune, side by side."""
