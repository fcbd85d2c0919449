"""``python -m ctxedit``."""

import sys

from ctxedit.cli import script

sys.exit(script())
