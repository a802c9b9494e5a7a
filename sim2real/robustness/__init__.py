"""Which differences between worlds a policy survives, and which policy will survive the real one."""
