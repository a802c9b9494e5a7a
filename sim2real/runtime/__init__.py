"""The bridge's runtime: observer, scheduler, streamer, supervisor, and the two processes."""
