"""Nothing to configure: with `tests/__init__.py` this file puts the repository root on the path under pytest."""
