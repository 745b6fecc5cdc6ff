"""Measurements beside other implementations, one table a command: `maskedlab bench step`."""
