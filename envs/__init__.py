"""Where actions have consequences."""
