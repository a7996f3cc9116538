"""Prompts to pictures, and pictures through a model and back: a file for each way to draw."""
