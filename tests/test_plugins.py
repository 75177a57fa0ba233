"""Objects of others by name: modules, entry points, and what is said where there is none."""

import pytest

from hippo import plugins
from hippo.errors import BadRequest, HippoError
from hippo.params import SamplingParams
from hippo.pruning import Attention, Pruner, pruner_named

MODULE = """
from hippo.errors import BadRequest
from hippo.pruning import Attention, Pruner
def keep(signals, keep_ratio): return [0]
class Kept:
    keep = keep
attentive = Pruner("a name of its own", keep, Attention())
number = 3
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Modules that may be imported, and an installed package with two entry points."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "some_pruners.py").write_text(MODULE)
    (tmp_path / "broken_module.py").write_text("raise OSError('no\\nlicence')")
    info = tmp_path / "some_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[hippo.pruners]\nfirst = some_pruners:keep\nmissing = some_pruners:nothing\n"
        "[hippo.drafters]\nother = some_pruners:Kept\n"
    )
    plugins._entry_point.cache_clear()
    yield tmp_path
    plugins._entry_point.cache_clear()


def test_a_module_and_the_path_in_it(package):
    assert plugins.load("pruner", "some_pruners:keep")(None, 0.1) == [0]
    assert plugins.load("pruner", "some_pruners:Kept.keep")(None, 0.1) == [0]


def test_entry_points_are_of_their_group(package):
    assert plugins.load("pruner", "first")(None, 0.1) == [0]
    assert plugins.load("drafter", "other").__name__ == "Kept"
    with pytest.raises(BadRequest, match=r"unknown pruner 'other': use one of: none, first, missing, or MODULE:NAME$"):
        plugins.load("pruner", "other", ["none"])


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("nowhere:keep", "ModuleNotFoundError: No module named 'nowhere'"),
        ("some_pruners:nothing", "has no attribute 'nothing'"),
        ("some_pruners:", "has no attribute ''"),
        (":keep", "ValueError: Empty module name"),
        ("broken_module:keep", "OSError: no licence"),
        ("missing", "has no attribute 'nothing'"),
    ],
)
def test_what_does_not_load_is_one_line_with_its_name(package, name, cause):
    with pytest.raises(BadRequest) as error:
        plugins.load("pruner", name)
    assert f"pruner {name!r} does not load" in str(error.value) and cause in str(error.value)
    assert "\n" not in str(error.value)


def test_a_pruner_by_name_is_found_when_the_request_is_made(package):
    params = SamplingParams.of(pruner="some_pruners:keep")
    assert params.pruner_name == "some_pruners:keep" and params.name == "auto + some_pruners:keep"
    with pytest.raises(BadRequest, match="'nowhere:keep' does not load"):
        SamplingParams.of(pruner="nowhere:keep")
    for wrong in ("some_pruners:number", 3, object()):
        with pytest.raises(BadRequest, match="is no function"):
            SamplingParams.of(pruner=wrong)


def test_a_pruner_by_any_name_is_a_pruner(package):
    named, entered = pruner_named("some_pruners:keep"), pruner_named("first")
    assert (named.name, named.attention) == ("some_pruners:keep", None) and entered.name == "first"
    assert named.keep is entered.keep
    whole = pruner_named("some_pruners:attentive")
    assert isinstance(whole, Pruner) and whole.name == "some_pruners:attentive" and whole.attention == Attention()
    assert pruner_named(named.keep).name == SamplingParams.of(pruner=named.keep).pruner_name == "some_pruners:keep"


def test_names_of_what_has_none():
    class Callable:
        def __call__(self, signals, keep_ratio):
            return [0]

    assert plugins.name_of(Callable()).endswith("<locals>.Callable")
    assert plugins.name_of(lambda: 0).endswith("<lambda>")


def test_an_error_of_ours_stays_as_it_is(package):
    (package / "honest_module.py").write_text("from hippo.errors import HippoError\nraise HippoError('needs a key')")
    with pytest.raises(HippoError, match=r"^needs a key$"):
        plugins.load("drafter", "honest_module:Any")
