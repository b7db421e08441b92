"""From a store's segments to training batches: order, frames, prefetch, loaders."""
