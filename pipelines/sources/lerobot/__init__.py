"""LeRobotDataset v3.0: Parquet rows, MP4 or embedded pictures, described in ``meta/``."""
