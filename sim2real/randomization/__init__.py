"""Domain randomisation: terms by name, their settings, and the events that they become."""
