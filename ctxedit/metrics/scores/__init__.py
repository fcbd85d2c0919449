"""The metrics that come with ctxedit, one family a file; each file here is found by itself."""
