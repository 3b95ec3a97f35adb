"""One family of errors. Each message says what was given, what was expected and what to do."""


class GossamerError(Exception):
    """Base class of every error that gossamer raises on purpose."""


class BaseMismatch(GossamerError):
    """A delta does not belong to this base: other values, other shapes, or a touched parameter is missing."""


class BadFile(GossamerError):
    """A file is not a valid delta: truncated, altered, of a newer version, or not ours at all."""


class BadData(GossamerError):
    """Training or evaluation data cannot be used: empty, a missing column, an unknown label."""


class BadPlan(GossamerError):
    """A request that cannot be carried out: unknown method, impossible density, contradicting options."""


class Diverged(GossamerError):
    """Training produced NaN or infinite values."""


class NotLinear(GossamerError):
    """Arithmetic was asked of something that does not add or scale."""


class Clash(GossamerError):
    """Two things want the same place: two different heads, two tunings of one model, an existing output."""
