"""Recording while the bridge runs: episodes into a store, and all topics into a bag."""
