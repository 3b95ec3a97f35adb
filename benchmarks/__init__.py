"""Speed, memory and file size of gossamer, as ratios of one run. `python -m benchmarks --help`."""
