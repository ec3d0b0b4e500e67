"""How any number of workers share an unfinished cache, and reuse what an older one holds."""
