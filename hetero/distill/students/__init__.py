"""Those who can learn to draft: layers of the target's, or a head that reads the target's mind."""
