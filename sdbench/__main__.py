"""`python -m sdbench`."""

import sys

from sdbench.cli import main

sys.exit(main())
