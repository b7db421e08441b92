"""Sources of demonstrations to stores on disk: planning, ingest, statistics, verification, collection."""
