"""`python -m budwood`."""

from __future__ import annotations

import sys

from budwood.cli.app import main

sys.exit(main())
