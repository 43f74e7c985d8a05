"""Several processes of one run: how torchrun's find each other, and how they learn that one of them is gone."""
