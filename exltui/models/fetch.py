"""One door to all downloads: the starter model by its name, any other by its repository."""

from __future__ import annotations

from pathlib import Path

from exltui.errors import DownloadError
from exltui.models import starter
from exltui.models.hub import Repository, get_from_hub
from exltui.models.transfer import IsCancelled, Progress


def fetch_model(name: str, models_dir: Path, progress: Progress, cancelled: IsCancelled) -> Path:
    """The directory of the model ``name`` (``smollm2-135m`` or OWNER/REPO[@REVISION]) below ``models_dir``, fetched if it is not there.

    ``progress`` gets (stage, bytes done, bytes in all). Raises DownloadError or Cancelled.
    """
    if name == starter.NAME:
        return starter.get_starter(models_dir, progress, cancelled)
    repository = Repository.parse(name)
    if repository is None:
        raise DownloadError(f"{name!r} is not the name of a model", f"say {starter.NAME}, or OWNER/REPO or OWNER/REPO@REVISION of the hub")
    return get_from_hub(repository, models_dir, progress, cancelled)
