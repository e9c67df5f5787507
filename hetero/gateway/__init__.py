"""The HTTP gateway: what real clients speak. It only formats; the verifier decides where a text ends."""
