"""`python -m distillation`, which `torchrun -m` needs too."""

import sys

from distillation.cli import main

sys.exit(main())
