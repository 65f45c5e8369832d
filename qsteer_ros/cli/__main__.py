"""``python -m qsteer_ros.cli``."""

import sys

from qsteer_ros.cli import main

sys.exit(main())
