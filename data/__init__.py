"""What an observation, an action and a demonstration are."""
