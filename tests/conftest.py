"""What all tests share."""

from __future__ import annotations

import torch

# The tensors are small: a second thread only makes them wait for each other on a busy machine.
torch.set_num_threads(1)
