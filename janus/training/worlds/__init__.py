"""Synthetic worlds: endless pictures, captions and questions whose truth is known exactly."""
