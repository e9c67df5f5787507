"""The HTTP gateway: OpenAI's routes. It only formats; the verifier decides where a text ends."""
