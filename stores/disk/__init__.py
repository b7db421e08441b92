"""The one door to the disk: durable writes, locks, exchange of folders."""
