"""What is computed from a store and kept beside it: statistics, language embeddings."""
