"""``iwsft push`` and ``iwsft pull``: data sets and policies on the Hugging Face Hub, which nothing else contacts.

    iwsft push my/hopper/mine-v0 hf://ORG                                    # a data set of the local Minari root
    iwsft pull hf://ORG/my/hopper/mine-v0
    iwsft push results/runs/.../iql-seed0-....safetensors hf://ORG/policies  # a policy, and its result
    iwsft pull hf://ORG/policies/iql-seed0-....safetensors

Data sets lie as Minari's own remote keeps them. What is pulled is a stranger's: nothing of it is run, and a run treats
it like any other data set.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import tyro

from iwsft_control.base import console
from iwsft_control.base.errors import UserError, require

SCHEME = "hf://"


@dataclasses.dataclass(frozen=True)
class Push:
    """Upload a data set or a policy."""

    what: Annotated[str, tyro.conf.Positional]
    """Id of a data set in the local Minari root, or the .safetensors file of a policy."""
    to: Annotated[str, tyro.conf.Positional]
    """hf://ORG for a data set, hf://ORG/NAME for a policy. You must be logged in (hf auth login)."""


@dataclasses.dataclass(frozen=True)
class Pull:
    """Download a data set or a policy."""

    what: Annotated[str, tyro.conf.Positional]
    """hf://ORG/ID of a data set, or hf://ORG/NAME/FILE.safetensors of a policy."""
    out: Path | None = None
    """Folder of a policy, by default the current one; a data set goes into the local Minari root."""


def parts_of(address: str, least: int, form: str) -> list[str]:
    """The parts of hf://ORG/...

    Raises:
        UserError: it has another form.
    """
    parts = address.removeprefix(SCHEME).split("/")
    good = address.startswith(SCHEME) and len(parts) >= least and all(p and p not in (".", "..") for p in parts)
    require(good, f"{address} is not {form}.")
    return parts


@contextmanager
def hub() -> Iterator[Any]:
    """The Hub's interface; what goes wrong there is one sentence.

    Raises:
        UserError: huggingface_hub is missing, the Hub is not reached, or it refuses.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError("huggingface_hub is not installed; pip install huggingface_hub.") from error
    try:
        yield huggingface_hub.HfApi()
    except UserError:
        raise
    except Exception as error:  # whatever the network and the Hub answer with
        first = (str(error).strip().splitlines() or [""])[0]
        raise UserError(
            f"the Hub did not do it ({type(error).__name__}: {first:.200}); check the address and your login."
        ) from error


def push(what: str, to: str) -> str:
    """Upload a data set or a policy; its address.

    Raises:
        UserError: it is neither, or the Hub refuses.
    """
    if what.endswith(".safetensors"):
        return _push_policy(Path(what), to)
    (organisation, *more) = parts_of(to, 1, "the address of an organisation or user, hf://ORG")
    require(not more, f"{to} is not the address of an organisation or user, hf://ORG; the data set keeps its own id.")
    from iwsft_control.datasets import minari_files  # here and below: help and a mistake in an address need none of it

    _check_free(what)
    there = what in minari_files.local_ids()
    require(there, f"{what} is neither a .safetensors file nor a data set in {minari_files.minari_path('')}.")
    group, *rest = what.split("/")
    repository = f"{organisation}/{group}"
    with hub() as api:
        api.create_repo(repository, repo_type="dataset", exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=str(minari_files.minari_path(what)),
            path_in_repo="/".join(rest),
            repo_type="dataset",
        )
    return f"{SCHEME}{organisation}/{what}"


def _check_free(identity: str) -> None:
    """Refuse ids by which a task takes its data unasked, and for what they are known to be: anyone can push any.

    Raises:
        UserError: it is one.
    """
    from iwsft_control.datasets import packed

    require(
        not identity.startswith("D4RL/"),
        f"{identity} would stand for D4RL's own data, unchecked; 'iwsft d4rl download' gets and checks these, and "
        "other data go by another id.",
    )
    require(
        identity not in packed.embedded_manifest(),
        f"{identity} comes with this package, and another would stand in its place; give other data another id.",
    )
    require(
        not identity.startswith("iwsft/"),
        f"{identity} would stand for data that this package collects, unchecked; 'iwsft collect' makes these, and "
        "other data go by another id.",
    )


def _push_policy(path: Path, to: str) -> str:
    organisation, name, *more = parts_of(to, 2, "the address of a repository of policies, hf://ORG/NAME")
    require(not more, f"{to} is not the address of a repository of policies, hf://ORG/NAME.")
    require(path.is_file(), f"{path} does not exist or is no file; check the path.")
    from iwsft_control.networks.policies import load_policy

    load_policy(path)  # what is uploaded can be read
    repository = f"{organisation}/{name}"
    with hub() as api:
        api.create_repo(repository, repo_type="model", exist_ok=True)
        for each in (path, path.with_suffix(".json")):
            if each.is_file():
                api.upload_file(
                    path_or_fileobj=str(each), path_in_repo=each.name, repo_id=repository, repo_type="model"
                )
    return f"{SCHEME}{repository}/{path.name}"


def pull(what: str, out: Path | None = None) -> Path:
    """Download a data set into the local Minari root, or a policy into a folder; where it is.

    Args:
        out: folder of a policy; by default the current one.

    Raises:
        UserError: there is none at that address, it is there already, or it is damaged; or a data set has an ``out``.
    """
    organisation, group, *rest = parts_of(what, 2, "an address hf://ORG/ID")
    if what.endswith(".safetensors"):
        return _pull_policy(f"{organisation}/{group}", "/".join(rest), what, out or Path("."))
    require(
        out is None,
        "--out is for policies; a data set goes into the local Minari root (MINARI_DATASETS_PATH); leave it out.",
    )
    from iwsft_control.datasets import minari_files

    identity = "/".join([group, *rest])
    _check_free(identity)
    target = minari_files.minari_path(identity)
    require(not target.exists(), f"{identity} is already in {target}; delete that folder to pull it again.")
    console.writable(target.parent)
    # Beside its place, so that it takes it in one step; the name is no version, so that nobody takes it for data.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".pull-") as folder, hub() as api:
        inside = "/".join(rest)
        api.snapshot_download(
            f"{organisation}/{group}",
            repo_type="dataset",
            allow_patterns=[f"{inside}/*" if inside else "data/*"],
            local_dir=folder,
        )
        found = Path(folder, inside)  # of an id without a slash the folder itself
        require((found / "data" / "metadata.json").is_file(), f"there is no data set {identity} at {what}.")
        found.rename(target)
    return target


def _pull_policy(repository: str, name: str, what: str, out: Path) -> Path:
    require(bool(name), f"{what} is not the address of a policy, hf://ORG/NAME/FILE.safetensors.")
    target = out / Path(name).name
    require(not target.exists(), f"{target} exists already; delete it, or choose another --out.")
    console.writable(out)
    from iwsft_control.networks.policies import load_policy

    with tempfile.TemporaryDirectory(dir=out, prefix=".pull-") as folder, hub() as api:
        found = Path(api.hf_hub_download(repository, name, repo_type="model", local_dir=folder))
        load_policy(found)
        found.rename(target)
    return target


def main(config: Push | Pull) -> None:
    """Do it, and say where it is."""
    where = push(config.what, config.to) if isinstance(config, Push) else pull(config.what, config.out)
    console.console.print(f"{config.what} -> {where}")
