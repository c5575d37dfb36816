"""The one error that a user sees: one line that says what is wrong, where, and what to do."""


class UserError(ValueError):
    """A mistake the user can mend. The message is one line: what is wrong, where, what to do."""
