from types import SimpleNamespace

import pytest

from tuning import submission, submission_version
from tuning.errors import UserError

CONTRACT = """
def init_optimizer_state(workload, model_params, model_state, hyperparameters, rng): return {}, None
def update_params(*, workload, train_state): return None
def get_batch_size(workload_name): return SIZE
def data_selection(workload, input_queue, *others): return 1
"""


def package(folder, **files):
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    return folder


def test_a_package_member_may_import_its_neighbours(tmp_path):
    package(tmp_path / "subs_a", __init__="")
    package(tmp_path / "subs_a" / "shared", __init__="SIZE = 17")
    package(tmp_path / "subs_a" / "one", __init__="", submission="from ..shared import SIZE" + CONTRACT)
    loaded = submission.load(tmp_path / "subs_a" / "one")
    assert (loaded.name, loaded.get_batch_size("x")) == ("one", 17)
    assert loaded.prepare_for_eval is None and loaded.needs_train_state
    assert loaded.search_space_file == tmp_path / "subs_a" / "one" / "tuning_search_space.json"
    again = submission.load(tmp_path / "subs_a" / "one" / "submission.py")
    assert again.update_params is loaded.update_params


def test_folders_outside_packages_do_not_get_in_each_others_way(tmp_path):
    for size in (1, 2):
        package(tmp_path / f"lone{size}", submission=f"SIZE = {size}" + CONTRACT)
    assert [submission.load(tmp_path / f"lone{size}").get_batch_size("x") for size in (1, 2)] == [1, 2]


def test_the_batch_size_is_the_submissions_or_for_a_name_that_it_does_not_know_the_workloads(tmp_path):
    text = "def get_batch_size(name): return {'known': 8}.get(name) or int('unknown ' + name)\n"
    loaded = submission.load(package(tmp_path / "picky", submission="SIZE = 0" + CONTRACT + text))
    workload = SimpleNamespace(training_batch_size=32)
    assert [loaded.training_batch_size(name, workload) for name in ("known", "other")] == [8, 32]
    with pytest.raises(ValueError, match="unknown other"):
        loaded.training_batch_size("other", SimpleNamespace(training_batch_size=None))


def test_the_evaluation_batch_size_is_chosen_alike(tmp_path):
    workload = SimpleNamespace(eval_batch_size=64)
    text = "def get_eval_batch_size(name): return {'known': 8}.get(name) or int('unknown ' + name)\n"
    with_own = submission.load(package(tmp_path / "picky_eval", submission="SIZE = 0" + CONTRACT + text))
    without = submission.load(package(tmp_path / "plain_eval", submission="SIZE = 0" + CONTRACT))
    assert [with_own.evaluation_batch_size(name, workload) for name in ("known", "other")] == [8, 64]
    assert without.evaluation_batch_size("known", workload) == 64
    assert with_own.with_batch_sizes(None, 4).evaluation_batch_size("known", workload) == 4


@pytest.mark.parametrize("size", ["None", "0", "-8", "8.0", "'8'"])
def test_a_batch_size_that_is_no_positive_whole_number_is_refused(tmp_path, size):
    text = f"SIZE = {size}{CONTRACT}get_eval_batch_size = get_batch_size\n"
    loaded = submission.load(package(tmp_path / "sized", submission=text))
    workload = SimpleNamespace(training_batch_size=32, eval_batch_size=32)
    for chosen in (loaded.training_batch_size, loaded.evaluation_batch_size):
        with pytest.raises(ValueError, match=f"'sized' has the batch size {size} for 'b3db'; return a positive"):
            chosen("b3db", workload)


def test_an_unknown_path_lists_what_is_there(tmp_path):
    for name in ("b", "a"):
        package(tmp_path / name, submission=CONTRACT)
    package(tmp_path / "library", code="")
    for path in (tmp_path / "c", tmp_path / "library", tmp_path):
        with pytest.raises(UserError, match=r"^no submission at '.*' has a, b$"):
            submission.load(path)
    with pytest.raises(UserError, match="give a folder with submission.py"):
        submission.load(tmp_path / "nowhere" / "c")


def test_what_the_contract_lacks_is_named(tmp_path):
    folder = package(tmp_path / "half", submission="def update_params(): pass\nget_batch_size = 3")
    with pytest.raises(UserError, match="not define init_optimizer_state, get_batch_size, data_selection"):
        submission.load(folder)


def test_a_missing_module_is_the_users_error(tmp_path):
    folder = package(tmp_path / "needy", submission="import no_such_module_at_all")
    with pytest.raises(UserError, match="^No module named 'no_such_module_at_all'$"):
        submission.load(folder)


def test_a_package_of_the_same_name_elsewhere_is_not_taken_for_it(tmp_path):
    for place in ("here", "there"):
        package(tmp_path / place / "subs_b", __init__="", submission="SIZE = 3" + CONTRACT)
    submission.load(tmp_path / "here" / "subs_b")
    with pytest.raises(UserError, match="has the same module name, .*, as .*here/subs_b/submission.py"):
        submission.load(tmp_path / "there" / "subs_b")


@pytest.mark.parametrize("name", ["kfac.v2", "2 fast", "a-b"])
def test_a_folder_whose_name_no_import_can_hold_is_loaded_in_and_outside_a_package(tmp_path, name):
    lone = package(tmp_path / name, submission="from size_of_dots import SIZE" + CONTRACT)
    (lone / "size_of_dots.py").write_text("SIZE = 5")
    own = package(tmp_path / "subs_dots" / name, __init__="", submission="from ..shared import SIZE\n" + CONTRACT)
    (own / "submission.py").write_text("from .near import N\n" + (own / "submission.py").read_text())
    (own / "near.py").write_text("N = 1")
    (tmp_path / "subs_dots" / "__init__.py").write_text("")
    (tmp_path / "subs_dots" / "shared.py").write_text("SIZE = 6")
    found = [submission.load(folder) for folder in (lone, own)]
    assert [(each.name, each.get_batch_size("x")) for each in found] == [(name, 5), (name, 6)]


def test_the_version_is_of_the_folder_and_of_what_it_imports_and_of_nothing_else(tmp_path):
    def version(folder):
        submission_version.of.cache_clear()
        return submission_version.of(folder / "submission.py")

    package(tmp_path / "subs_v", __init__="", other="import subs_v.missing")
    package(tmp_path / "subs_v" / "shared", __init__="", inner="SIZE = 17", unused="")
    text = "import json, numpy\nfrom ..shared.inner import SIZE\nfrom . import near" + CONTRACT
    one = package(tmp_path / "subs_v" / "one", __init__="", submission=text, near="")
    submission.load(one)
    seen = [version(one)]
    assert version(one) == seen[0] and len(seen[0]) == 16
    for file, is_part in (
        (one / "submission.py", True),
        (one / "near.py", True),
        (tmp_path / "subs_v" / "shared" / "inner.py", True),
        (tmp_path / "subs_v" / "__init__.py", True),
        (tmp_path / "subs_v" / "shared" / "unused.py", False),
        (tmp_path / "subs_v" / "other.py", False),
    ):
        file.write_text(file.read_text() + "\n# changed\n")
        assert (version(one) not in seen) == is_part, file
        seen.append(version(one))


def test_libraries_are_no_part_of_the_version_wherever_they_are_installed(tmp_path, monkeypatch):
    """As those of `pip install --user`, or of another environment on PYTHONPATH."""
    library = tmp_path / "elsewhere" / "site-packages"
    library.mkdir(parents=True)
    (library / "some_library.py").write_text("x = 1\n")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "submission.py").write_text("import some_library\n")
    monkeypatch.syspath_prepend(library)

    def version():
        submission_version.of.cache_clear()
        return submission_version.of(tmp_path / "own" / "submission.py")

    first = version()
    (library / "some_library.py").write_text("x = 2\n")
    assert version() == first


def test_the_version_of_a_file_outside_any_package_is_of_what_it_imports_too(tmp_path):
    lone = package(tmp_path / "lone_v", submission="import helper_v" + CONTRACT, helper_v="")
    first = submission_version.of(lone / "submission.py")
    (lone / "helper_v.py").write_text("x = 1")
    submission_version.of.cache_clear()
    assert submission_version.of(lone / "submission.py") != first
