"""Time-to-target reports from trial folders."""
