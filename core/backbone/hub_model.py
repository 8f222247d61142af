"""Fetches a model's folder from the Hugging Face Hub or its cache on this machine; each failure has its own remedy."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

from core.data.hub import one_question
from core.errors import BackboneError

FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]


def fetch_model(name: str, revision: str = "") -> Path:
    """The folder of the repository `name` (org/name), called after its commit; an empty `revision` is the default.

    Raises BackboneError for an unknown, private or gated repository, an unknown revision, a name that is no Hub id, and
    no network.
    """
    with one_question() as unreachable:
        try:
            return Path(snapshot_download(name, revision=revision or None, allow_patterns=FILES))
        except GatedRepoError as error:
            remedy = f"open the model's page, accept the licence, then `hf auth login` (or set HF_TOKEN), and run again ({type(error).__name__})"
            raise BackboneError(f"{name} is gated: its licence must be accepted first", remedy=remedy) from error
        except RevisionNotFoundError as error:
            raise BackboneError(f"{name} has no revision {revision}", remedy="name a branch, tag or commit of the repository") from error
        except RepositoryNotFoundError as error:
            remedy = "check the spelling; for a private model `hf auth login` or set HF_TOKEN"
            raise BackboneError(f"the Hub has no model {name}, or it is private", remedy=remedy) from error
        except HFValidationError as error:
            expected = "a folder, a .gguf file, or org/name"
            raise BackboneError(f"{name} is neither a folder nor a Hub id", expected=expected, found=str(error)) from error
        except (LocalEntryNotFoundError, OSError) as error:
            raise BackboneError(
                f"{name} is not on this machine and the Hub can't be reached",
                found=unreachable or f"{type(error).__name__}: {str(error).splitlines()[0]}",
                remedy="go online once, or give a local folder: --model FOLDER; the embedded default needs no hub: --model smollm2-135m",
            ) from error
