"""What curvature costs: step times, memory, counted operations, and the work of each of several devices.

May import submissions and workloads.
"""
