"""The command line: thin fronts on the library."""
