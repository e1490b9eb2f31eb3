"""Every variant inside Daft, measured in fresh processes and explained."""
