"""The HTTP edge: who asks, what for, and how the answer looks."""
