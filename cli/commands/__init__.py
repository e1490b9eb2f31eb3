"""The commands, one per file, each with what it prints."""
