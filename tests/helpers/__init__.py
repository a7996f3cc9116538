"""What several test files share and is no fixture; `pythonpath` in pyproject.toml lets them import it."""
