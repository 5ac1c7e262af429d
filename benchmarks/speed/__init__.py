"""Speed and memory of fused_bn beside eager PyTorch and torch.compile, layer by layer."""

import os

# Beside another busy process, threads that spin while they wait made a call of 0.2 ms take 63 ms; asleep
# they do not. OMP_WAIT_POLICY=ACTIVE times spinning ones. Read when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
