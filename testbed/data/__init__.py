"""Images and labels, split once and for ever."""
