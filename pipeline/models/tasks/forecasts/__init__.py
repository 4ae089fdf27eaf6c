"""Tasks whose truth is the cache itself are built of these parts: which frame tells of which, what
the state after a frame says of a later one, and how far that is from what came."""
