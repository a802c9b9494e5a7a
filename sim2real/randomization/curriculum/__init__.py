"""How wide randomisation is at each time of training."""
