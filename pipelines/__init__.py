"""Sources to stores: plans, readers, the serial and Dask runners, ingest, statistics."""
