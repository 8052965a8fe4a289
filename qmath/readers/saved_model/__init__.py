"""SavedModels: what the ops of the graph compute with."""
