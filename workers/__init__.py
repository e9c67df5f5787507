"""What runs on devices: engines, the draft tree, acceptance, verifier, drafter, the wire between them."""
