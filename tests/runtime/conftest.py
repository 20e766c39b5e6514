"""One torch thread, as in the workers: small operations on several threads wait for each other more than they compute."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
