"""Graph networks on molecules."""
