"""Archives of recordings, swept by a model: resumable, in parts, on one machine or many."""
