"""What `statevla demo` runs, from recording demonstrations to a page."""
