"""Remote inference: a policy server and its client."""
