"""A Space of the Hub that has the page to try a student on."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import version
from pathlib import Path

import yaml
from huggingface_hub import constants

from nlpkd.hub.sending import Target, explained, make_repository, send_folder
from nlpkd.models.loading import load_config, split_revision
from nlpkd.serving.trial import page_module, shared_names
from nlpkd.utils.disk.full_disk import temporary_folder


def make_space(
    repo_id: str,
    student: str,
    teacher: str | None = None,
    *,
    private: bool | None = None,
    token: str | None = None,
    pairs: bool = False,
) -> str:
    """Make a Space of the Hub that has the page, for models that are on the Hub.

    It shows no text of anybody's data: of the rows on which both differ it has numbers and answers alone.

    Args:
        repo_id: `USER/NAME` of the Space, made where missing.
        student: a Hub id (`id@revision`).
        teacher: likewise.
        private: whether a new Space is private; None takes the account's default.
        token: a token with write access; None takes the one of `hf auth login`.
        pairs: whether a text has a second one beside it.

    Returns:
        The address of the Space.

    Raises:
        ValueError: if a model is no Hub id, or one that transformers alone can't load, or both have other classes; or
            the Space is to be private, and exists and is public.
        OSError: if a model is not on the Hub.
        RuntimeError: if the Space could not be sent; it says why.
    """
    target = Target(repo_id, private, token, commit_message="A page to try a student distilled with nlpkd", space=True)
    # Models that a Space can load.
    page = page_module()
    named = {"student": student} | ({} if teacher is None else {"teacher": teacher})
    configs = {}
    for role, name in named.items():
        if Path(name).exists():
            raise ValueError(
                f"a Space loads its models from the Hub, and the {role} {name} is a path: nlpkd push it first, and "
                "give its id"
            )
        known, revision = split_revision(name)
        configs[role] = load_config(known, revision=revision)
        kind = configs[role].model_type
        if kind.startswith("nlpkd_"):
            raise ValueError(f"the {role} {name} is of the kind {kind}, which a Space without nlpkd can't load")
    labels = shared_names(configs)
    # What the Space says of itself.
    models = {role: split_revision(name) for role, name in named.items()}
    about = {
        "title": repo_id.rpartition("/")[2], "sdk": "gradio", "sdk_version": version("gradio"), "app_file": "app.py",
        "models": [name for name, _ in models.values()],
    }  # fmt: skip
    links = " and ".join(f"the {role} [{name}](https://huggingface.co/{name})" for role, (name, _) in models.items())
    # A local build of torch, such as 2.13.0+cpu, is on no index.
    needed = [f"{package}=={version(package).partition('+')[0]}\n" for package in ("torch", "transformers")]
    # Write its files, and send them.
    with temporary_folder() as staged, explained(target, "the Space", "To finish, run the same again"):
        shutil.copy(page.__file__, staged / "app.py")
        asked = {"models": models, "labels": labels, "pairs": pairs}
        (staged / page.MODELS_NAME).write_text(json.dumps(asked), encoding="utf-8")
        (staged / "requirements.txt").write_text("".join(needed), encoding="utf-8")
        text = f"---\n{yaml.safe_dump(about, sort_keys=False)}---\n\nType a text, and see what {links} answer.\n"
        (staged / "README.md").write_text(text, encoding="utf-8")
        target = make_repository(target)
        send_folder(target, staged)
    return f"{constants.ENDPOINT}/spaces/{target.repo_id}"
