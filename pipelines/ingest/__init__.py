"""Sources into a store: plan, work units, records, merge, and the driver that runs them."""
