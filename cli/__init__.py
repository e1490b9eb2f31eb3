"""The command line: the `xopt` command, and the options and tables that commands share."""
