"""The metrics that come with ctxedit, one family a file; every file of this folder is loaded."""
