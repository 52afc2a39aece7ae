"""A library that a killed linker left cut in inductor's cache is made anew by who meets it."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from torch._inductor import codecache, config, cpu_vec_isa  # noqa: E402

from probgen import backends  # noqa: E402
from probgen.backends.torch import player  # noqa: E402
from probgen.backends.torch.compile import Compiled  # noqa: E402
from probgen.backends.torch.inductor import past_cut_libraries  # noqa: E402

HEAD = b"\x7fELF".ljust(64, b"\0")


def kernel():
    x = torch.linspace(-1.0, 1.0, 64)
    made = Compiled(lambda x: torch.tanh(3.0 * x).sum() + 1.0, "cpu", "inductor", None)
    assert abs(float(made(x)) - 1.0) < 1e-4
    return made.route, made.reason


def played():
    """A copy of four bytes, by the player."""
    a, b = torch.zeros(1), torch.ones(1)
    places = [player.Place(t.data_ptr()) for t in (a, b)]
    player.Player([player.Table([(0, places, 4)])]).play()
    assert float(a) == 1.0
    return "inductor", ""


def forget():
    """What this process has loaded, so that libraries are looked for on disk."""
    backends.forget()
    codecache.CppCodeCache.cache_clear()
    codecache.CppPythonBindingsCodeCache.cache_clear()
    player._play.cache_clear()


@pytest.fixture
def cut(tmp_path, monkeypatch):
    """(content, times) -> libraries of an empty cache, as they are made: so many times the linker
    is killed when it has written that content."""
    cpu_vec_isa.pick_vec_isa()  # which tries small libraries of its own
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    real, made = codecache._worker_compile_cpp, []

    def killed(content, times):
        def compile(lock, builders):
            path = Path(builders[-1].get_target_file_path())
            if path.exists():
                return
            made.append(path)
            if len(made) > times:
                real(lock, builders)
            else:
                path.write_bytes(content)

        monkeypatch.setattr(codecache, "_worker_compile_cpp", compile)
        return made

    forget()
    with config.patch(compile_threads=1):
        yield killed
    forget()


@pytest.mark.parametrize(
    "work, content", [(kernel, b""), (played, bytes(4096))], ids=["kernel", "player"]
)
def test_a_cut_library_is_compiled_anew(work, content, cut):
    made = cut(content, 1)
    assert work() == ("inductor", "")
    assert len(made) == 2 and made[0].read_bytes().startswith(HEAD[:4])


def test_where_it_is_cut_again_the_next_route_says_so(cut, caplog):
    made = cut(b"", 9)
    route, reason = kernel()
    assert route == "graph" and "file too short" in reason and len(made) == 2
    assert "falls back" in caplog.text


@pytest.mark.parametrize(
    "content, where, goes",
    [(HEAD[:50], "cache", True), (HEAD, "cache", False), (b"", "elsewhere", False)],
    ids=["short", "whole", "elsewhere"],
)
def test_what_is_whole_or_lies_outside_the_cache_stays(content, where, goes, tmp_path, monkeypatch):
    """By an error of the loader's: another process may have made it anew since."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    path = tmp_path / where / "ab" / "key.main.so"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    errors = [ImportError(f"{path}: file too short")]

    def make():
        if errors:
            raise errors.pop()
        return "made"

    assert past_cut_libraries(make) == "made"
    assert path.exists() is not goes
