"""The AlgoPerf submission contract, shared by all submissions; it knows workloads by duck typing alone."""
