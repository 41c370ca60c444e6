"""Files that are whole or not there, folders that one run writes to, links, and disks that are full."""
