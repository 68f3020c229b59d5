"""What curvature costs: step times, memory, counted operations, and how they grow.

May import submissions and workloads.
"""
