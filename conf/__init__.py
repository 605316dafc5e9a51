"""What to run, as data; a package only so that a wheel carries it."""
