"""``python -m detrlab``."""

import sys

from detrlab.cli import main

sys.exit(main())
