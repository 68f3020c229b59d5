"""Workloads: data, model, loss, metric and target behind one contract (`workloads.spec`)."""
