"""A Hub in memory under the real client: what a push adds, deletes and leaves is decided by huggingface_hub's own code."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi


class HubFake:
    """Repositories by name: the files of each, and the pushes that were refused or accepted."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.created: list[dict[str, Any]] = []
        self.commits = 0
        self.refusals = 0
        """So many of the next commits fail."""
        self.refusal: Exception = OSError("the connection was reset")

    def install(self, monkeypatch: pytest.MonkeyPatch) -> HubFake:
        hub = self

        class Api(HfApi):
            def create_repo(self, repo: str, **options: Any) -> None:  # type: ignore[override]
                hub.created.append({"repo": repo, **options})
                hub.files.setdefault(repo, {".gitattributes": b""})

            def list_repo_files(self, repo_id: str, **options: Any) -> list[str]:  # type: ignore[override]
                return sorted(hub.files[repo_id])

            def _validate_yaml(self, content: str, **options: Any) -> None:
                assert content.startswith("---\n"), "a card without metadata"

            def create_commit(self, repo_id: str, operations: Any, **options: Any) -> Any:  # type: ignore[override]
                if hub.refusals:
                    hub.refusals -= 1
                    raise hub.refusal
                files = hub.files[repo_id]
                for operation in operations:
                    if isinstance(operation, CommitOperationDelete):
                        del files[operation.path_in_repo]
                    else:
                        assert isinstance(operation, CommitOperationAdd)
                        files[operation.path_in_repo] = Path(str(operation.path_or_fileobj)).read_bytes()
                hub.commits += 1
                return SimpleNamespace(oid=f"commit{hub.commits}")

        monkeypatch.setattr("huggingface_hub.HfApi", Api)
        monkeypatch.setenv("HF_TOKEN", "hf_x")
        return self

    def names(self, repo: str) -> set[str]:
        """What a user finds in it."""
        return set(self.files[repo]) - {".gitattributes"}
