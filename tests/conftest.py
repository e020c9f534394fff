"""What must be set before anything imports torch."""

import os

# With the default policy, a thread of torch that waits for another burns the core that the other one needs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
