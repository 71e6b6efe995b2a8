"""`python -m vlsae`."""

import sys

from vlsae.cli import main

sys.exit(main())
