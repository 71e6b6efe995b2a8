"""Dictionaries from and to the hub: huggingface_hub's own code runs, over a hub in memory."""

import json
import re
import tempfile
from pathlib import Path

import pytest
import torch

from tests.dictionaries.hub_server import Hub
from tests.dictionaries.planted import FAMILIES, planted
from vlsae.dictionaries import Dictionary
from vlsae.dictionaries.checkpoint import CONFIG, WEIGHTS, CheckpointError
from vlsae.dictionaries.hub import download, fetch, parse_hub_id
from vlsae.dictionaries.relu import ReLUDictionary
from vlsae.dictionaries.topk import TopKDictionary


@pytest.fixture
def offline(monkeypatch):
    from huggingface_hub import constants

    return lambda switched: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", switched)


@pytest.fixture
def hub(monkeypatch, tmp_path, offline):
    """A hub that downloads come from and uploads go to, and the library's cache in a folder of the test."""
    import huggingface_hub
    from huggingface_hub import CommitInfo, RepoUrl, constants, set_client_factory
    from huggingface_hub.utils import _http

    served, usual = Hub(), _http._GLOBAL_CLIENT_FACTORY
    offline(False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    set_client_factory(lambda: served.client(usual))

    def create_repo(api, repo_id, *, private=None, exist_ok=False):
        full = repo_id if "/" in repo_id else f"me/{repo_id}"
        if full in served.repos and not exist_ok:
            raise AssertionError("made twice")
        served.repos.setdefault(full, {})
        return RepoUrl(f"{constants.ENDPOINT}/{full}")

    def upload_folder(api, *, repo_id, folder_path, path_in_repo, commit_message, revision, create_pr):
        served.put(repo_id, Path(folder_path), path_in_repo or "", revision or "main")
        url = f"{constants.ENDPOINT}/{repo_id}/commit/{'a' * 40}"
        return CommitInfo(
            url,
            commit_message,
            "",
            "a" * 40,
            pr_url=f"{constants.ENDPOINT}/{repo_id}/discussions/1" if create_pr else None,
        )

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    yield served
    set_client_factory(usual)


def assert_equal(found, sae):
    assert type(found) is type(sae)
    assert (found.settings, found.metadata, found.transform.kind) == (sae.settings, sae.metadata, sae.transform.kind)
    assert found.state_dict().keys() == sae.state_dict().keys()
    assert all(torch.equal(value, sae.state_dict()[name]) for name, value in found.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_round_trip_is_equal_bit_for_bit(hub, offline, family):
    sae = FAMILIES[family]()
    url = sae.push_to_hub("me/concepts", subfolder="layer_11/best")
    assert url.endswith(f"/me/concepts/commit/{'a' * 40}")
    assert set(hub.repos["me/concepts"]["main"]) == {f"layer_11/best/{name}" for name in ("README.md", CONFIG, WEIGHTS)}
    assert_equal(Dictionary.from_pretrained("me/concepts/layer_11/best"), sae)
    assert_equal(type(sae).from_pretrained("hf:me/concepts@main", subfolder="layer_11/best"), sae)
    hub.asked.clear()
    offline(True)
    assert_equal(Dictionary.from_pretrained("me/concepts/layer_11/best"), sae)
    offline(False)
    hub.down = True
    assert_equal(Dictionary.from_pretrained("me/concepts/layer_11/best"), sae)
    assert_equal(Dictionary.from_pretrained("me/concepts/layer_11/best", local_files_only=True), sae)
    assert hub.asked == []


def test_a_new_commit_is_seen_and_an_old_one_stays(hub):
    first, second = planted(TopKDictionary, k=3), planted(TopKDictionary, k=4)
    first.push_to_hub("me/sae", branch="v1")
    first.push_to_hub("me/sae")
    assert Dictionary.from_pretrained("me/sae").k == 3
    second.push_to_hub("me/sae")
    assert Dictionary.from_pretrained("me/sae").k == 4
    assert Dictionary.from_pretrained("me/sae@v1").k == Dictionary.from_pretrained("me/sae", revision="v1").k == 3
    assert Dictionary.from_pretrained("me/sae", force_download=True).k == 4


def test_a_family_opens_its_own_only(hub, tmp_path):
    planted(ReLUDictionary).save_pretrained(tmp_path / "sae")
    with pytest.raises(CheckpointError, match=r"'relu' dictionary and TopKDictionary.*opens 'topk' only; use ReLUDict"):
        TopKDictionary.from_pretrained(tmp_path / "sae")
    assert ReLUDictionary.from_pretrained(tmp_path / "sae").family == "relu"


def test_only_the_files_of_the_folder_are_fetched(hub, tmp_path):
    names = ["a.json", "b.safetensors", "c.pt", "d.pth", "e.npz", "f.bin", "g.tar", "h.md", "i.pkl", "j.png"]
    for name in [*names, *(f"sub/{name}" for name in names), *(f"sub/in/{name}" for name in names), "sub[1]/k.pt"]:
        (tmp_path / "repo" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "repo" / name).write_text(name)
    hub.put("me/many", tmp_path / "repo")

    def fetched(*where, **options):
        cache = tmp_path / f"cache-{len(list(tmp_path.iterdir()))}"
        folder = download("me/many", *where, cache_dir=cache, **options)
        root = next(cache.glob("*/snapshots/*"))
        assert folder == root.joinpath(*where)
        return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}

    assert fetched() == set(names[:6])
    assert fetched("sub") == {f"sub/{name}" for name in names[:6]}
    assert fetched("sub", names=["c.pt", "*.j*"]) == {"sub/c.pt", "sub/a.json"}
    assert fetched("sub[1]") == {"sub[1]/k.pt"}
    with pytest.raises(CheckpointError, match=r"'sub' of me/many has not all of c.pt, no.pt; folders that have: none"):
        fetched("sub", names=["c.pt", "no.pt"])


def test_one_file_of_many_is_named_and_its_configurations_come_along(hub, tmp_path):
    names = ["config.json", "README.md", "checkpoints/ae_100.pt", "checkpoints/ae_200.pt", "checkpoints/note.json",
             "checkpoints/old/ae_1.pt"]  # fmt: skip
    for name in [*names, *(f"trainer_0/{name}" for name in names)]:
        (tmp_path / "repo" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "repo" / name).write_text(name)
    hub.put("me/steps", tmp_path / "repo")
    for inner in ("", "trainer_0/"):
        cache = tmp_path / f"cache{inner.count('/')}"
        path = fetch(f"me/steps/{inner}checkpoints/ae_200.pt", cache_dir=cache)
        assert path.read_text() == "checkpoints/ae_200.pt" if not inner else path.name == "ae_200.pt"
        root = next(cache.glob("*/snapshots/*"))
        held = {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}
        assert held == {inner + name for name in ("config.json", "checkpoints/ae_200.pt", "checkpoints/note.json")}
    with pytest.raises(CheckpointError, match="has not all of ae_300.pt"):
        fetch("me/steps/checkpoints/ae_300.pt")


def test_what_lies_here_has_no_revision_and_no_other_folder(hub, tmp_path, monkeypatch):
    file = planted(ReLUDictionary).save(tmp_path / "sae") / WEIGHTS
    assert fetch(tmp_path / "sae") == tmp_path / "sae"
    assert fetch(str(file)) == file
    for path in (file, tmp_path / "sae"):
        with pytest.raises(CheckpointError, match="lies on this machine and has no revision 'v2'"):
            fetch(path, revision="v2")
        with pytest.raises(CheckpointError, match="has no folder 'nowhere'"):
            fetch(path, subfolder="nowhere")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fetch(f"~/sae/{WEIGHTS}") == file
    for missing in ("ae_100.pt", "checkpoints/ae_100.pt", "C:/models/sae", "~/other", "a" * 300 + ".pt"):
        with pytest.raises(CheckpointError, match="does not exist; give the folder or file of a dictionary"):
            fetch(missing)
    assert hub.asked == []  # none of them is a question for the hub


def test_without_weights_the_folders_that_have_some_are_named(hub, tmp_path):
    for i in range(25):
        folder = tmp_path / "repo" / f"layer_{i:02d}" / "k_32"
        folder.mkdir(parents=True)
        (folder / "ae.pt").write_text("weights")
    (tmp_path / "repo" / "config.json").write_text("{}")
    hub.put("me/layers", tmp_path / "repo")
    with pytest.raises(CheckpointError) as caught:
        download("me/layers")
    shown = re.findall(r"layer_\d\d/k_32", str(caught.value))
    assert shown == [f"layer_{i:02d}/k_32" for i in range(20)]
    assert "The root of me/layers has no weights" in str(caught.value)
    assert "(25 in all)" in str(caught.value)
    assert download("me/layers", "layer_24/k_32").name == "k_32"
    with pytest.raises(CheckpointError, match=r"'layer_24' of me/layers has no weights"):
        download("me/layers", "layer_24")
    with pytest.raises(
        CheckpointError, match=r"cache that have: layer_24/k_32 \(1 in all\).*local_files_only=True keeps"
    ):
        download("me/layers", "layer_24", local_files_only=True)


def test_a_cache_that_an_interruption_left_incomplete_is_not_used(hub, tmp_path):
    planted(ReLUDictionary).push_to_hub("me/sae")
    folder = download("me/sae")
    (folder / CONFIG).unlink()
    with pytest.raises(CheckpointError, match=r"me/sae is not in the cache, or not all of it"):
        download("me/sae", local_files_only=True)
    hub.down = True
    with pytest.raises(CheckpointError, match=r"not all of it, and the hub gives no answer"):
        download("me/sae")
    hub.down = False
    assert (download("me/sae") / CONFIG).exists()


@pytest.mark.parametrize(
    ("asked", "options", "message"),
    [
        ("me/none", {}, r"no repository me/none, or it is private; check the name, or log in with `hf auth login`"),
        ("me/gated", {}, r"me/gated is gated: ask for access at https://.*/me/gated, then log in"),
        ("me/sae@v9", {}, r"me/sae has no revision 'v9'; give a branch"),
        ("me/sae", {"revision": "v9"}, r"me/sae has no revision 'v9'"),
        (
            "me/sae",
            {"local_files_only": True},
            r"me/sae is not in the cache.*local_files_only=True keeps.*leave it out",
        ),
        ("me/sae/sub@x", {}, r"'me/sae/sub@x' is no hub id; give 'user/repo'"),
        ("me/sae/sub", {"subfolder": "in"}, r"names a folder or revision, and so does subfolder='in'"),
        ("me/sae@v1", {"revision": "v2"}, r"and so does subfolder='', revision='v2'; give each of them once"),
        ("me/sae", {"subfolder": "../../x"}, r"'../../x' is no folder of a repository"),
        ("./sae", {}, r"./sae does not exist; give the folder or file of a dictionary, or a hub id"),
        (Path("me/sae"), {}, r"me/sae does not exist"),
    ],
)
def test_what_cannot_be_had(hub, asked, options, message):
    hub.repos["me/sae"] = {"main": {CONFIG: b"{}", WEIGHTS: b""}}
    hub.repos["me/gated"], hub.gated = {"main": {}}, {"me/gated"}
    with pytest.raises(CheckpointError, match=message) as caught:
        Dictionary.from_pretrained(asked, **options)
    assert "\n" not in str(caught.value)


def test_without_a_network_the_error_says_why_and_what_to_do(hub, offline):
    hub.down = True
    with pytest.raises(
        CheckpointError, match=r"me/sae@v1/sub is not in .*no answer \(.*not known\); try again with a net"
    ):
        fetch("hf:me/sae@v1/sub")
    offline(True)
    with pytest.raises(
        CheckpointError, match=r"HF_HUB_OFFLINE keeps.*unset it, or download it on another machine"
    ) as e:
        fetch("me/sae")
    assert str(e.value).endswith("(There is nothing called 'me/sae' on this machine either.)")
    with pytest.raises(CheckpointError, match=r"The dictionary was not published. To me/sae, HF_HUB_OFFLINE keeps"):
        raise_from_push(ConnectionError("offline"))
    with pytest.raises(ValueError, match="give only one"):
        download("me/sae", force_download=True, local_files_only=True)


def raise_from_push(error):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.HfApi.create_repo", lambda *_, **__: (_ for _ in ()).throw(error))
        planted(ReLUDictionary).push_to_hub("me/sae")


def test_the_cache_as_the_library_lays_it_out_opens_without_a_network(tmp_path, offline):
    """Written by hand after the library's documentation: a ref that names a commit, links into blobs."""
    sae, commit = planted(TopKDictionary, "unit", k=3), "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "models--user--repo"
    snapshot = repo / "snapshots" / commit
    for folder in (repo / "refs", repo / "blobs", snapshot):
        folder.mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    for file in sae.save(tmp_path / "saved").iterdir():
        file.rename(repo / "blobs" / f"hash-of-{file.name}")
        (snapshot / file.name).symlink_to(Path("../../blobs") / f"hash-of-{file.name}")
    offline(False)  # so that nothing but the argument keeps it from the network
    assert_equal(Dictionary.from_pretrained("user/repo", cache_dir=tmp_path, local_files_only=True), sae)
    assert_equal(Dictionary.from_pretrained(f"user/repo@{commit}", cache_dir=tmp_path, local_files_only=True), sae)
    with pytest.raises(CheckpointError, match=r"has not all of cfg.json, sae_weights.safetensors in the cache"):
        Dictionary.from_pretrained("user/repo/sub", cache_dir=tmp_path, local_files_only=True)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("user/repo", ("user/repo", "", None)),
        ("hf:user/repo", ("user/repo", "", None)),
        ("user/repo/sub", ("user/repo", "sub", None)),
        ("user/repo/sub/fol der", ("user/repo", "sub/fol der", None)),
        ("hf:user/repo@rev", ("user/repo", "", "rev")),
        ("User-1/re.po_2@v1.0/a/b", ("User-1/re.po_2", "a/b", "v1.0")),
        ("user/repo@refs/pr/12/a", ("user/repo", "a", "refs/pr/12")),
    ],
)
def test_hub_ids(text, parts):
    assert tuple(parse_hub_id(text)) == parts
    assert str(parse_hub_id(text)) == text.removeprefix("hf:")


@pytest.mark.parametrize(
    "text",
    ["", "repo", "hf:repo", "user/", "/repo", "user/repo/", "user//repo", "user/repo//a", "user/repo@", "user/repo@a@b",
     "user/repo/a@b", "us er/repo", "user/repo/..", "user/repo/a/../b", "user/re--po", "user/repo.git", "hf:hf:user/repo",
     "https://host/user/repo", "user/répo", "-user/repo"],
)  # fmt: skip
def test_what_is_no_hub_id(text):
    with pytest.raises(CheckpointError, match=r"give .*'?user/repo'|give its path from the root"):
        parse_hub_id(text)


def test_local_folders_come_first(hub, tmp_path, monkeypatch):
    near, far = planted(ReLUDictionary), planted(TopKDictionary, k=3)
    near.save(tmp_path / "me" / "sae" / "sub")
    far.push_to_hub("me/sae", subfolder="sub")
    monkeypatch.chdir(tmp_path)
    assert_equal(Dictionary.from_pretrained("me/sae/sub"), near)
    assert_equal(Dictionary.from_pretrained("me/sae", subfolder="sub"), near)
    assert_equal(Dictionary.from_pretrained("hf:me/sae/sub"), far)
    with pytest.raises(CheckpointError, match=r"me/sae has no folder 'other'; its folders: sub \(1 in all\)"):
        Dictionary.from_pretrained("me/sae", subfolder="other")


def test_saving_twice_replaces(tmp_path):
    planted(ReLUDictionary).save_pretrained(tmp_path / "sae")
    second = planted(TopKDictionary, k=2)
    assert second.save_pretrained(tmp_path / "sae") is None
    assert {path.name for path in (tmp_path / "sae").iterdir()} == {CONFIG, WEIGHTS, "README.md"}
    assert_equal(Dictionary.from_pretrained(tmp_path / "sae"), second)
    assert "# A topk dictionary of 10 latents" in (tmp_path / "sae" / "README.md").read_text()


def test_saving_can_publish(hub, tmp_path):
    sae = planted(ReLUDictionary)
    url = sae.save_pretrained(
        tmp_path / "concepts", push_to_hub=True, create_pr=True, model_card_kwargs={"license": "mit"}
    )
    assert url.endswith("/me/concepts/discussions/1")
    assert_equal(Dictionary.from_pretrained("me/concepts"), sae)
    card = hub.repos["me/concepts"]["main"]["README.md"].decode()
    assert "load_dictionary('me/concepts')" in card  # with the user that the hub added
    assert "license: mit" in card
    with pytest.raises(TypeError, match="private belong to push_to_hub=True"):
        sae.save_pretrained(tmp_path / "other", private=True)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), "refused"])
def test_an_interrupted_push_leaves_nothing(hub, tmp_path, monkeypatch, stop):
    from huggingface_hub.errors import HfHubHTTPError

    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    seen = []

    def upload_folder(api, *, folder_path, **_):
        seen.extend(sorted(path.name for path in Path(folder_path).iterdir()))
        if stop == "refused":
            request = hub.http.Request("POST", "https://hub/me/sae")
            raise HfHubHTTPError("403 Forbidden: no right to write", response=hub.http.Response(403, request=request))
        raise stop

    hub.repos["me/other"] = {"main": {}}
    with pytest.raises(CheckpointError):
        download("me/other")  # the client is made by its first request
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", upload_folder)
    message = r"The dictionary was not published. The hub refused me/sae: 403 .* If this is about access, log in"
    expected = pytest.raises(CheckpointError, match=message) if stop == "refused" else pytest.raises(KeyboardInterrupt)
    with expected:
        planted(ReLUDictionary).push_to_hub("me/sae")
    assert seen == ["README.md", CONFIG, WEIGHTS]
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_mistake_in_the_card_leaves_no_repository(hub):
    with pytest.raises(TypeError, match="licence"):
        planted(ReLUDictionary).push_to_hub("me/sae", model_card_kwargs={"licence": "mit"})
    with pytest.raises(CheckpointError, match="no hub repository"):
        planted(ReLUDictionary).push_to_hub("me/s a e")
    assert hub.repos == {}


def test_our_format_only(tmp_path):
    folder = planted(ReLUDictionary).save(tmp_path / "sae")
    config = json.loads((folder / CONFIG).read_text())
    del config["metadata"]["vlsae"]
    (folder / CONFIG).write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="written by another program"):
        Dictionary.from_pretrained(folder)
