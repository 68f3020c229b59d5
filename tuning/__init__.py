"""Runs submissions against workloads, times them and writes down what happened."""
