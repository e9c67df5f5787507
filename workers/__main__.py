"""``python -P -m hetero.workers SPEC``: a worker as a plain process."""

import sys

from hetero.workers.runtime.process import main

sys.exit(main())
