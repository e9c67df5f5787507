"""What crosses sockets: a closed set of typed messages, their bytes, and the sockets themselves."""
