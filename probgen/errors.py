"""Everything that probgen raises or warns of on purpose, and nothing else.

A message has three parts: what was got, what was expected, what to do about it, with the site, net
or file by name. Nothing of ours is imported here, so every room may import this one.
"""


class ProbgenError(Exception):
    """Root of every error that probgen raises on purpose."""


class DeclarationError(ProbgenError):
    """A program is not well formed: two sites of one name, an unknown net, a missing guide."""


class DuplicateSite(DeclarationError):
    """Two sites of one program bear the same name."""


class UnknownName(DeclarationError):
    """A name that the program, the parameters or a registry does not have."""


class UnknownDistribution(UnknownName, AttributeError):
    """`probgen.dist` has no distribution of that name; an AttributeError too, as Python asks."""


class ShapeError(ProbgenError):
    """An array, or a site's log-probability, has axes that do not fit."""


class SupportError(ProbgenError):
    """A value lies outside the support of its distribution."""


class DataError(ProbgenError):
    """Data that cannot be used: empty, not finite, of the wrong type, a damaged or missing file."""


class BackendError(ProbgenError):
    """A backend or device is not there, or cannot do what was asked of it."""


class AlgorithmError(ProbgenError):
    """A model and an algorithm that do not fit each other, or options that contradict."""


class NotByRow(AlgorithmError):
    """A draw that cannot be made from one key a datum.

    `compile(over="rows")` then takes the data one by one.
    """


class WorkerError(ProbgenError):
    """Work could not be sent to an executor's workers, or they are not fit for it."""


class MissingSeed(ProbgenError):
    """Randomness was asked for without a seed."""


class NonFiniteError(ProbgenError):
    """A computation produced NaN or infinity and could not be mended."""


class DivergedError(ProbgenError):
    """A fit went where its algorithm's own watch says that it must not, and could not be mended."""


class UnsafeSums(RuntimeWarning):
    """A warning: JAX was started in this process in a way that sums wrongly now and then."""


class SaveError(ProbgenError):
    """A run folder could not be written, or is damaged, truncated or not ours."""


class OtherRun(SaveError):
    """What stands in the folder is whole, and was made from other settings, data or parameters."""


class Terminated(SystemExit):
    """SIGTERM came, and what was done is kept: exit status 143. No `ProbgenError`, so that nothing
    that bears errors goes on after it."""

    def __init__(self, message: str):
        super().__init__(143)
        self.message = message

    def __str__(self) -> str:
        return self.message
