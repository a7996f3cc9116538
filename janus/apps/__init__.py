"""What is run: the command line and what its commands need beyond the library."""
