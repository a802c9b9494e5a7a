"""System identification: the simulator fitted to recordings of a real arm, and how well each number is known."""
