"""`from_pretrained`, `save_pretrained` and `push_to_hub`, by huggingface_hub's conventions, with `cfg.json` as the config.

huggingface_hub's own mixin would write a `config.json` beside it, a second place for the same facts.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any


class HubMixin:
    """What a dictionary inherits to come from the Hugging Face hub and go there."""

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        subfolder: str = "",
        device: str = "cpu",
    ):
        """Open a dictionary that `save_pretrained` or `save` wrote, from a folder or from the hub.

        Args:
            name_or_path: a local folder, or a hub id: "user/repo", "user/repo/sub/folder", "hf:user/repo@v2".
            revision: branch, tag or commit; the default branch where None.
            token: for private and gated repositories; the one of `hf auth login` where None.
            cache_dir: the hub's own cache where None.
            local_files_only: look at nothing but the cache.
            force_download: fetch again what is in the cache.
            subfolder: within the folder or the repository.
            device: where the weights go.

        Returns:
            The dictionary, equal bit for bit to what was saved.

        Raises:
            CheckpointError: for a folder or repository that cannot be had or is no dictionary of this library, and,
                called on a family, for a dictionary of another one.

        Example:
            >>> import tempfile
            >>> from vlsae.dictionaries import Dictionary
            >>> from vlsae.dictionaries.topk import TopKDictionary
            >>> folder = tempfile.mkdtemp()
            >>> TopKDictionary(d=4, n_latents=8, k=2).save_pretrained(folder)
            >>> Dictionary.from_pretrained(folder).settings
            {'k': 2}
        """
        from vlsae.dictionaries.checkpoint import CONFIG, WEIGHTS, CheckpointError, load_dictionary
        from vlsae.dictionaries.hub import fetch

        folder = fetch(
            name_or_path,
            subfolder=subfolder,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
            names=(CONFIG, WEIGHTS),
        )
        found = load_dictionary(folder, device)
        wanted = getattr(cls, "family", found.family)
        if found.family != wanted:
            raise CheckpointError(
                f"{name_or_path} holds a {found.family!r} dictionary and {cls.__name__}.from_pretrained opens {wanted!r} "
                f"only; use {type(found).__name__}.from_pretrained, or Dictionary.from_pretrained for any family."
            )
        return found

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        model_card_kwargs: dict[str, Any] | None = None,
        **push_to_hub_kwargs: Any,
    ) -> str | None:
        """Write `cfg.json`, `sae_weights.safetensors` and `README.md`, the model card; each replaces an earlier one.

        Args:
            save_directory: created if needed.
            repo_id: "user/repo", where the card says the dictionary is; the folder's name for `push_to_hub`.
            push_to_hub: whether to publish it too.
            model_card_kwargs: arguments of `vlsae.dictionaries.card.model_card`, such as `{"license": "mit"}`.
            push_to_hub_kwargs: arguments of `push_to_hub`.

        Returns:
            The URL of the commit with `push_to_hub`, else None.

        Raises:
            CheckpointError: where it cannot be published; the folder is written all the same.
            TypeError: for arguments of `push_to_hub` without it.
        """
        from vlsae.dictionaries.card import model_card, write_card

        if push_to_hub_kwargs and not push_to_hub:
            raise TypeError(f"{', '.join(push_to_hub_kwargs)} belong to push_to_hub=True; give it, or leave them out.")
        subfolder = push_to_hub_kwargs.get("subfolder", "")
        text = model_card(self, repo_id, subfolder, **(model_card_kwargs or {}))
        folder = self.save(save_directory)
        write_card(text, folder)
        if not push_to_hub:
            return None
        return self.push_to_hub(
            repo_id or folder.resolve().name, model_card_kwargs=model_card_kwargs, **push_to_hub_kwargs
        )

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Add a dictionary of vlsae",
        private: bool | None = None,
        token: str | None = None,
        branch: str | None = None,
        create_pr: bool = False,
        subfolder: str = "",
        model_card_kwargs: dict[str, Any] | None = None,
    ) -> str:
        """Publish the dictionary with its model card, in one commit; its metadata, also the name of the data, go along.

        Args:
            repo_id: "user/repo", created if needed; "repo" alone is the user's own.
            commit_message: of the commit.
            private: whether a new repository is private; as the account says where None.
            token: with the right to write; the one of `hf auth login` where None.
            branch: an existing branch; the default branch where None.
            create_pr: propose the commit as a pull request.
            subfolder: where in the repository, so that it can hold several dictionaries; the hub shows the card of the
                root only.
            model_card_kwargs: arguments of `vlsae.dictionaries.card.model_card`.

        Returns:
            The URL of the commit, or of the pull request.

        Raises:
            CheckpointError: where the hub cannot be reached, or refuses; no local file is left behind.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HTTPError

        from vlsae.dictionaries.card import model_card, write_card
        from vlsae.dictionaries.checkpoint import CheckpointError
        from vlsae.dictionaries.hub import checked, no_answer, refusal

        asked = checked(repo_id, subfolder, branch)
        api = HfApi(token=token)
        with TemporaryDirectory(prefix="vlsae-push-") as folder:
            self.save_pretrained(
                folder, model_card_kwargs=model_card_kwargs
            )  # a mistake here leaves no empty repository
            try:
                full_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
                write_card(model_card(self, full_id, subfolder, **(model_card_kwargs or {})), folder)
                commit = api.upload_folder(
                    repo_id=full_id,
                    folder_path=folder,
                    path_in_repo=subfolder or None,
                    commit_message=commit_message,
                    revision=branch,
                    create_pr=create_pr,
                )
            except (OSError, HTTPError) as error:
                reason = (
                    refusal(error, asked) or f"To {asked}, {no_answer(error)}; save_pretrained works without the hub."
                )
                raise CheckpointError(f"The dictionary was not published. {reason}") from error
        return commit.pr_url or commit.commit_url
