"""An output folder belongs to one run: locked while in use, moved aside whole, compared by content when resumed."""
