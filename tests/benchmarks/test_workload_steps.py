from benchmarks.timing import Timing
from benchmarks.workload_steps import table


def test_ratios_are_taken_block_by_block():
    """A machine that slows down threefold in the second block slows both; the ratios show 2, 2 and 4."""
    reference, own = Timing("reference", [0.010, 0.030, 0.010]), Timing("own", [0.020, 0.060, 0.040])
    first = [Timing("reference", [0.010, 0.040, 0.010]), Timing("own", [0.015, 0.060, 0.015])]
    assert table([reference, own], first).splitlines()[2:] == [
        "| reference | 10.0 | 1.00 | 1.00 | 1.00 | 1.00 |",
        "| own | 40.0 | 2.00 | 2.00 | 4.00 | 1.50 |",
    ]
