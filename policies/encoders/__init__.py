"""What a policy sees: one encoder a kind of observation, put together by ``observation``."""
