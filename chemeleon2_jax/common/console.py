"""What the console shows of a log record."""

ON_CONSOLE = "on_console"
"""`extra={ON_CONSOLE: text}` shows the text instead of the message; '' shows nothing."""
