"""Pure arithmetic over numbers: devices, memory, cost, simulation. Imports nothing else of hetero."""
