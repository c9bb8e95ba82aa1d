"""``python -m asepsis.cli``."""

from __future__ import annotations

import sys

from asepsis.cli import main

if __name__ == "__main__":
    sys.exit(main())
