"""``python -m exltui`` is ``exltui``."""

import sys

from exltui.cli import main

if __name__ == "__main__":
    sys.exit(main())
