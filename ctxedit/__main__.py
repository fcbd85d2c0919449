"""``python -m ctxedit``."""

import sys

from ctxedit.cli import main

sys.exit(main())
