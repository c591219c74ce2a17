"""Engine `dwba`: rough multilayers in torch, in batches, on CPU and CUDA, with gradients. Importing it imports torch."""

from scatterflow.forward.dwba.engine import Engine, expected_counts, limits

__all__ = ["Engine", "expected_counts", "limits"]
