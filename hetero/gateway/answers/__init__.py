"""From deltas to what a client is shown."""
