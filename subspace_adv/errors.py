"""What is told to users."""


class UserError(ValueError):
    """A mistake of the user's, told in one line: where, which field, which value, and what to do."""
