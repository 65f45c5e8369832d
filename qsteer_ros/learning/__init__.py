"""Training programs: data, encoder, behaviour cloning, critics."""
