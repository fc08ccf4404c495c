"""Measuring a checkpoint on this machine: its limits, the engine by itself, and the service over HTTP."""
