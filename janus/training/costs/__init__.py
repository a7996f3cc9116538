"""What a recipe will take of memory and time, told before it runs, and tried: `janus train --dry-run`."""
