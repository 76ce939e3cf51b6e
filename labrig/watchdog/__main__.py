"""`python -m labrig.watchdog`: started by a rig for itself, of no use by hand."""

import sys

from labrig.watchdog.process import main

sys.exit(main())
