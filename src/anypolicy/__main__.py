"""`python -m anypolicy`."""

import sys

from anypolicy.cli import main

sys.exit(main())
