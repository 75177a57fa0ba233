"""Tests mirror the modules of the package."""

import os

# Read when torch is imported: many models run here on two cores, and threads that spin while they wait take them all.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# No test depends on what an earlier run measured, and none writes into the user's home.
os.environ["HIPPO_STATE"] = "off"
