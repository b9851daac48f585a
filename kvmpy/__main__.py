"""``python -m kvmpy``."""

import sys

from .cli import main

sys.exit(main())
