"""Robot models, their kinematics, and what an action means to them."""
