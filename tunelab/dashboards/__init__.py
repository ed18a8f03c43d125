"""What a browser shows of a study: pages on the loopback interface, which read and change nothing."""
