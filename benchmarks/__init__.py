"""What curvature costs: step times, memory, counted operations, and how they grow. Sees both halves of the suite."""
