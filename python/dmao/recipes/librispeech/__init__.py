"""LibriSpeech: read English, 960 hours (or 100, or the 5 of its small sister)."""
