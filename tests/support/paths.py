"""Where the checkout is, and what lies beside it."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
"""Values of published modules, kept in the checkout."""
SHARED = Path(os.environ.get("STILLFRAME_SHARED", ROOT.parent / "shared"))
"""Real clips and weights, where somebody keeps them; tests that want them are skipped elsewhere."""
