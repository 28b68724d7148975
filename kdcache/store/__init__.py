"""Where workers see what other workers made: a folder, or an object store, with leases in place of locks."""
