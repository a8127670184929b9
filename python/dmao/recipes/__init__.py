"""Reference recipes: data, configuration and experiment of one corpus each."""
