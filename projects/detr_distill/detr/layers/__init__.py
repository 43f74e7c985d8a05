"""What the detectors' parts are made of."""
