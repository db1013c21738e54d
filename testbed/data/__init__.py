"""Images and labels, with fixed splits."""
