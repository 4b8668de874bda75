"""The two ways a command ends early: the user can mend it, or the same command continues it."""


class UserError(ValueError):
    """Something the user can cause and mend; the message is one line: what is wrong, where, what to do."""


class Unavailable(UserError):
    """Something is away or taken just now: the same command may find it there later."""


class Resumable(RuntimeError):
    """The run stopped without losing committed work; the same command continues it."""


class WorkerLost(Resumable):
    """A worker of the attempt is gone or hangs: another attempt may do what this one could not."""


class NonFiniteLoss(Resumable):
    """The loss or its gradient is not finite; nothing of the step was committed, and the same values meet it again."""
