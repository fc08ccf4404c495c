"""Measurements; results/ holds what they gave, with command, commit and machine."""
