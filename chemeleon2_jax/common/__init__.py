"""What every room may use: errors, nearest names, atomic files, random keys, scores."""
