"""Speed shown as ratios: this package beside other queues, all in one run on one PostgreSQL."""
