"""Where actions have consequences. Imports nothing: environment workers start from here without loading torch."""
