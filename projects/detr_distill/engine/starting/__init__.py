"""What is settled before the first iteration: that everything is there, how long the run is, what is the best of it."""
