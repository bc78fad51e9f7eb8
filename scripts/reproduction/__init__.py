"""What scripts/reproduce is made of. Python's standard library only."""
