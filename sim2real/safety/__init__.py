"""Safety: every command passes here before it is sent."""
