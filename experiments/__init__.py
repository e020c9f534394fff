"""The entry points: what is composed from conf/, run, measured, compared and drawn.

Importing this package sets one environment variable, before anything can import torch: OpenMP's threads
sleep while they wait. By default they spin, and where something else uses a core, a torch process of two
threads then runs 10 to 30 times slower.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
