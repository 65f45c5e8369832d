"""Every error the package raises on purpose.

::

    QsteerError
    ├── ConfigError          the user can fix it; raised while configuring, nothing has moved
    ├── DataError            a file, message or checkpoint breaks its contract
    └── StaleObservation     runtime: the newest observation may not be acted on

Each message says what must hold, what was found, and what to do next. Anything else that escapes
is a defect of the package and keeps its traceback.
"""


class QsteerError(Exception):
    """Base of all errors raised on purpose."""


class ConfigError(QsteerError):
    """A setting, a file name or a combination of them that the user can put right."""


class DataError(QsteerError):
    """A file, message or checkpoint breaks its contract."""


class StaleObservation(QsteerError):
    """The newest observation is too old, incomplete or not finite: nothing may follow from it."""
