"""Tools of every room: errors, nearest names, atomic files, the cache, the fetcher, scores."""
