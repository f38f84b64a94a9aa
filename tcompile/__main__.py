"""`python -m tcompile`."""

from __future__ import annotations

import sys

from tcompile.cli import main

if __name__ == "__main__":
    sys.exit(main())
