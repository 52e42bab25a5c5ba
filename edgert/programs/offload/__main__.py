"""`python -m edgert.programs.offload --config F`: the supervisor starts it."""

from __future__ import annotations

import os

from edgert.programs import blas

os.environ.update(blas.environment(os.environ))  # before numpy

from edgert.programs.offload.daemon import main

raise SystemExit(main())
