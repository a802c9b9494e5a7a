"""A live page of the bridge in a browser on this machine."""
