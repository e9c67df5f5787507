"""HTTP itself: connections, who may ask, from which pages, how large; the headers every answer carries."""
