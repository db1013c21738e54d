"""The report: its sections, words, tables and page."""
