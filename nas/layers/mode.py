"""What layers ask about the way in which they run; nothing else asks torch.

Numbers do not depend on it: only whether memory may be used again, and which of equal operators
a runtime is given.
"""

from __future__ import annotations

import torch


def recording() -> bool:
    """Autograd records operations, so that a tensor must stay as it was when it was read."""
    return torch.is_grad_enabled()


def exporting() -> bool:
    """The layer is translated to ONNX, where other operators than torch's own are the fast ones."""
    return torch.onnx.is_in_onnx_export()
