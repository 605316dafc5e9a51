"""What a user can mend."""


class UserError(Exception):
    """Something the user can mend; the message is one line that says what is wrong and what to do."""


def require(condition: bool, message: str) -> None:
    """Raise ``UserError(message)`` unless ``condition`` holds."""
    if not condition:
        raise UserError(message)
