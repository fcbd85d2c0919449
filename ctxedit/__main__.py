"""``python -m ctxedit``."""

import sys

from ctxedit.cli import script

# Worker processes import this module under another name.
if __name__ == "__main__":
    sys.exit(script())
