"""`python -m tests.cuda_device COMMAND...` runs a command with emulated CUDA devices."""

import os
import sys

from tests.cuda_device.environment import emulated

if len(sys.argv) < 2:
    sys.exit(__doc__)
os.execvpe(sys.argv[1], sys.argv[1:], emulated(dict(os.environ)))
