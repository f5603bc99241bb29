"""The closed set of errors that exltui raises on purpose.

Each carries one sentence that says what went wrong and where, and a ``hint`` that says what to do about it. The command line
prints both and exits with 1; the app shows them as a card or a notice. Anything else that escapes is a defect and goes to the log.
"""

from __future__ import annotations


class ExltuiError(Exception):
    """Base of all deliberate errors: ``str(error)`` is the sentence, ``error.hint`` the way out ("" if there is none)."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class CheckpointError(ExltuiError):
    """A model file is damaged or absurd: truncated, overlapping tensors, a header that lies."""


class ModelError(ExltuiError):
    """A model directory cannot be run: no config, no tokenizer, an unknown architecture, a wrong dtype, a missing tensor."""


class ShapeError(ExltuiError):
    """Two tensors, or a tensor and an op's signature, do not fit. The message names the op, the dimension, and both sizes."""


class ContextError(ExltuiError):
    """A prompt does not fit into the context that was loaded."""


class SamplingError(ExltuiError):
    """A sampler setting is outside its range."""


class GrammarError(ExltuiError):
    """A JSON schema, regular expression or grammar cannot be followed."""


class TemplateError(ExltuiError):
    """A chat template is missing, does not compile, or refuses the conversation."""


class StoreError(ExltuiError):
    """The sessions database cannot be read or written."""


class SettingsError(ExltuiError):
    """A settings or theme file cannot be understood. The message names the file and the key."""


class DownloadError(ExltuiError):
    """A model could not be fetched: no network, wrong digest, no such repository."""


class BuildError(ExltuiError):
    """The native extension could not be compiled or loaded; the torch references run instead."""


class DeviceError(ExltuiError):
    """A device is not there, or has too little memory."""


class Cancelled(ExltuiError):  # noqa: N818  it is no error, only the way out of a long call
    """The user stopped a long operation. Not a failure: nothing half-done is left behind."""
