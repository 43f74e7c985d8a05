"""What goes wrong around a run: the machine's faults in words, and signals that end it."""
