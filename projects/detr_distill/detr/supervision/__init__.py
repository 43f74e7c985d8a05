"""From predictions and objects to detection losses: cost, assignment, criterion."""
