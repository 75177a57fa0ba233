"""Studies anyone can repeat: `hippo bench`."""
