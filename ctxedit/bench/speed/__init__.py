"""``ctxedit bench speed``: time, memory and operations of every way to edit and to tune, side by side."""
