"""Checks of the exercises: one module per chapter, imported when its first exercise is asked for."""
