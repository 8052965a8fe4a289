"""What is printed to be pasted is run in real shells: it arrives as meant, nothing else runs."""

from __future__ import annotations

import html
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import qmath
from qmath.cli.settings import read_settings
from qmath.errors import QmathError
from qmath.model import IN_PYTHON, missing_settings
from qmath.readers.notes import GET_CONFIG
from tests.cli.running import fails, run
from tests.cli.terminals import on_terminal
from tests.readers.builders import (
    kernel,
    quantizer,
    sequential,
    span,
    step,
    wrapped,
    write,
    write_v3,
)

pytest.importorskip("h5py")

# Each as a person would start it, who pastes: with the history's `!`, where the shell has it.
SHELLS = {
    "bash": ["--noprofile", "--norc", "-i"],
    "dash": [],
    "zsh": ["-f", "-i"],
    "ksh": [],
    "tcsh": ["-f"],
    "fish": ["--no-config"],
}
# What PowerShell and cmd read as more than itself between double quotes, of which both remove those
# around an argument; PowerShell takes typographic quotes for quotes; ! is cmd's with /v.
SPECIAL = {"PowerShell": '"$`\u201c\u201d\u201e\r\n', "cmd": '"%^!\r\n'}
_TOGETHER = 8  # names in one model
ALPHABET = re.compile(
    r'--quantizer "[A-Za-z0-9_./?=(), -]+"(?: --quantizer "[A-Za-z0-9_./?=(), -]+")*'
)
HOSTILE = (
    "\\'\";touch PWNED;#", "';touch PWNED;'", '";touch PWNED;"', "\\';touch PWNED;#",
    "\\\\';touch PWNED;'", "\\", "'", '"', "''", '""', "a'b", 'a"b', "$(touch PWNED)",
    "'$(touch PWNED)'", "\"$(touch PWNED)\"", "${IFS}", "$((1))", "$HOME", "`touch PWNED`",
    "'`touch PWNED`'", ";touch PWNED;", "|touch PWNED", "||touch PWNED||", "&touch PWNED&",
    "&&touch PWNED", ">PWNED", ">>PWNED", "<PWNED", ">(touch PWNED)", "<(touch PWNED)",
    "(touch PWNED)", "';(touch PWNED);'", "=(touch PWNED)", "a\ntouch PWNED\n", "a\r\ntouch PWNED",
    "a\u2028touch PWNED", "a\u2029b", "a\u0085b", "\x1b[200~touch PWNED\n\x1b[201~", "\x1b]0;x\x07",
    "\x08\x08\x7f", "\x04", "-rf", "--help", "-", "~", "~root", "=ls", "{a,b}", "{touch,PWNED}",
    "!!", "!touch", "!$", "'!!'", "^a^b^", "*", "?", "[a-z]*", "a b", " a ", "#a", "a#b", "%PATH%",
    "%1", "^&touch PWNED", "@(touch PWNED)", "@args", "a,b", "$env:PATH", "“;touch PWNED;”",
    "größe", "日本", "a=b", "x" * 300, "--quantizer \"a=b()\";touch PWNED;#", "\u202etouch PWNED",
)  # fmt: skip


def is_layer_name(name: str) -> bool:
    """Tell whether a file may name a layer so; of a class it may be anything."""
    return name.isprintable()


def model(path: Path, *names: str, high: float = 0.7) -> Path:
    """Write a model whose layers, or whose configs, are called so."""
    layers = {"plain": "MyConfig"}
    for i, name in enumerate(names):
        layers[f"plain{i}"] = name
        if name.isprintable():  # or else the file is refused
            layers |= {name: "MyConfig", f"{name}2": name}
    groups = {
        f"quant_{layer}": kernel(-0.8, high, layer=layer)
        | span("post_activation", layer=layer)
        | step(layer)
        for layer in layers
    }
    entries = [wrapped(layer, {}, config_class) for layer, config_class in layers.items()]
    # The same class with another width, so that one option does not do for all of its tensors.
    entries[0]["config"]["quantize_config"]["config"] = {"bits": 6}
    return write(path, sequential(*entries), groups)


def printed_of(folder: Path, *names: str) -> Iterator[str]:
    """Yield all that is printed of two such models."""
    known = model(folder / "known.h5", *names)
    page = folder / "page.html"
    yield run("inspect", known, "--html", page, "--overwrite").stdout
    yield from map(
        html.unescape, re.findall(r"<p class=\"remedy\">.*?</p>", page.read_text("utf-8"))
    )
    report = json.loads(run("inspect", known, "--json").stdout)
    yield from (item["remedy"] for item in report["warnings"])
    yield from report["notes"]
    yield run("export", known, "-o", folder / "known.npz", "--overwrite").stdout
    unknown = model(folder / "unknown.h5", *names, high=0.9)
    yield fails("export", unknown, "-o", folder / "unknown.npz")
    for tensor in qmath.load(unknown).tensors.values():
        with pytest.raises(QmathError) as caught:
            tensor.quantize()
        yield str(caught.value)


def pastes_in(text: str) -> Iterator[str]:
    """Yield what a reader takes for the options to paste: from the words before to those after."""
    for part in re.split(r"of your training script: |<code class=\"paste\">(?!qmath )", text)[1:]:
        paste = re.split(r" \(|, and the others |</code>", part)[0]
        if paste and paste != IN_PYTHON.split(" (")[0]:
            yield paste


@pytest.fixture(scope="module")
def pastes(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Return all that is offered to be pasted."""
    folder = tmp_path_factory.mktemp("models")
    found = {
        paste
        for i in range(0, len(HOSTILE), _TOGETHER)
        for text in printed_of(folder, *HOSTILE[i : i + _TOGETHER])
        for paste in pastes_in(text)
    }
    assert len(found) > len(HOSTILE)
    assert all(map(ALPHABET.fullmatch, found))
    return found


def run_in(shell: str, paste: str, folder: Path) -> list[str]:
    """Paste after ``qmath inspect model.h5``; return what `qmath` gets, if nothing else happens."""
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"{shell} is not installed")
    programs, place, record = folder / "bin", folder / "here", folder / "record"
    programs.mkdir(exist_ok=True)
    place.mkdir(exist_ok=True)
    record.unlink(missing_ok=True)
    program = programs / "qmath"
    program.write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\" >>{shlex.quote(str(record))}\n")
    program.chmod(0o755)
    environment = {"PATH": f"{programs}:/usr/bin:/bin", "HOME": str(place), "TERM": "dumb"}
    subprocess.run(
        [found, *SHELLS[shell]],
        input=f"qmath inspect model.h5 {paste}\n".encode(),
        cwd=place,
        env=environment | {"HISTFILE": "/dev/null", "XDG_DATA_HOME": str(folder / "data")},
        capture_output=True,
        timeout=60,
        check=False,
    )
    made = [path.name for path in place.iterdir() if path.name not in (".config", ".cache")]
    for name in made:
        (place / name).unlink()
    assert not made, f"{shell} made {made} of {paste}"
    words = record.read_text("utf-8").splitlines() if record.exists() else []
    assert words[:2] == ["inspect", "model.h5"], f"{shell} did not run {paste}"
    return words[2:]


def meant(paste: str) -> list[str]:
    """Return the arguments that options between double quotes mean."""
    return [word for value in re.findall('"([^"]*)"', paste) for word in ("--quantizer", value)]


@pytest.mark.once
@pytest.mark.parametrize("shell", SHELLS)
def test_in_every_shell_a_paste_runs_nothing_and_arrives(
    shell: str, pastes: set[str], tmp_path: Path
) -> None:
    for paste in sorted(pastes):
        assert run_in(shell, paste, tmp_path) == meant(paste), f"{shell}: {paste}"


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    "paste", ["--quantizer ''; touch PWNED; ''", "--quantizer a b", "--quantizer '"]
)
def test_the_check_finds_what_is_quoted_badly(shell: str, paste: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        assert run_in(shell, paste, tmp_path) == ["--quantizer", "a"]


@pytest.mark.parametrize(
    ("shell", "paste"),
    [
        ("fish", shlex.quote("\\'\";touch PWNED;#")),  # as it was printed once
        ("tcsh", shlex.quote("!!")),
        ("bash", '"!!"'),
        ("zsh", '"!!"'),
    ],
)
def test_what_some_shells_take_is_not_for_all(shell: str, paste: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        assert run_in(shell, paste, tmp_path) == shlex.split(paste)


@pytest.mark.parametrize("shell", SPECIAL)
def test_shells_of_windows_take_a_paste_as_it_is(shell: str) -> None:
    """By rule: of all that may stand between the quotes, nothing is special there."""
    allowed = {c for c in map(chr, range(0x3000)) if ALPHABET.fullmatch(f'--quantizer "{c}"')}
    assert len(allowed) == 2 * 26 + 10 + len("_./?=(), -")
    assert not allowed & set(SPECIAL[shell])


@pytest.mark.parametrize("name", HOSTILE)
def test_a_paste_says_what_was_asked_for(name: str, tmp_path: Path) -> None:
    """It means the tensors for which it is printed; without one, words name another way."""
    path = model(tmp_path / "model.h5", name)
    asked = missing_settings(qmath.load(path))
    bare = [item for item in asked if not item.option]
    assert len(name) == 300 or not bare
    options = [word for item in asked for word in meant(item.option)[1::2]]
    told = read_settings([option.replace("=N", "=4") for option in options], None)
    assert missing_settings(qmath.load(path, told)) == bare


def test_a_pattern_means_no_tensor_that_needs_another_quantizer(tmp_path: Path) -> None:
    ends = {"a;": (-0.8, 0.9), "a!": (-0.8, 0.9), "b;": (-0.8, 0.9), "bx": (-0.8, 0.7),
            "c;": (-0.8, 0.9), "c!": (-0.8, 0.9)}  # fmt: skip
    groups = {
        f"quant_{layer}": kernel(*both, layer=layer) | step(layer) for layer, both in ends.items()
    }
    entries = [wrapped(layer, {}, f"{layer}Config") for layer in ends]
    entries[0]["config"]["quantize_config"]["config"] = {"bits": 6}
    tensors = qmath.load(write(tmp_path / "model.h5", sequential(*entries), groups)).tensors
    keys = {
        name: hint.option.split('"')[1].split("=")[0] if hint.option else str(hint).split(" (")[0]
        for name, tensor in tensors.items()
        if (hint := tensor.hint)
    }
    words = f"Pass the settings of your training script: {IN_PYTHON}"
    assert keys == {
        "a;/kernel": words, "a!/kernel": words, "b;/kernel": words,
        "c;/kernel": "c?/kernel", "c!/kernel": "c?/kernel",
    }  # fmt: skip


def test_names_to_choose_from_are_plain(tmp_path: Path) -> None:
    for name in ("first", "$(touch PWNED)", "größe"):
        (tmp_path / f"{name}.index").touch()
    words = fails("inspect", tmp_path)
    assert words.endswith("first, 2 whose names a shell could read otherwise")
    path = model(tmp_path / "model.h5", "$(touch PWNED)")
    words = fails("inspect", path, "--quantizer", "Nobody.weights=NoQuantizer()")
    assert "classes MyConfig (say" in words
    assert words.endswith(
        "plain0/post_activation, ??touch?PWNED?/kernel, ??touch?PWNED?/post_activation, "
        "??touch?PWNED?2/kernel, ??touch?PWNED?2/post_activation"
    )


def test_settings_that_are_no_flags_are_refused(tmp_path: Path) -> None:
    config = {"weight_quantizer": quantizer(symmetric='";touch PWNED;"')}
    groups = {"quant_d": kernel(-0.8, 0.9) | step()}
    path = write(tmp_path / "model.h5", sequential(wrapped("d", config)), groups)
    with pytest.raises(qmath.QmathError, match="symmetric of its LastValueQuantizer"):
        qmath.load(path)


@pytest.mark.parametrize(
    ("layer", "config_class", "how"),
    [
        ("plain", "Mine", '--quantizer "Mine.weights=LastValueQuantizer(num_bits=N, ...)" ('),
        (
            "plain",
            "$(touch PWNED)",
            '--quantizer "plain/kernel=LastValueQuantizer(num_bits=N, ...)" (',
        ),
        (
            "$(touch PWNED)",
            "Mine",
            '--quantizer "Mine.weights=LastValueQuantizer(num_bits=N, ...)" (',
        ),
        ("`touch PWNED`", "$(touch PWNED)", f"{IN_PYTHON}; or "),
    ],
)
def test_where_several_readings_fit_the_option_is_plain(
    layer: str, config_class: str, how: str, tmp_path: Path
) -> None:
    values = np.ones((3, 4), np.float32)
    ranges = [np.float32(end) for end in (-2.5, 3.5, 0, 6)]
    content = {
        "layers/quantize_wrapper_v2": [values, np.int32(-1), *ranges],
        "layers/quantize_wrapper_v2/layer": [],
    }
    config = sequential(wrapped(layer, {}, config_class, units=4, use_bias=False))
    words = fails("inspect", write_v3(tmp_path / "model.keras", content, config))
    assert f"quantizers of the training script: {how}" in words


@pytest.fixture(scope="module")
def long_named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model(tmp_path_factory.mktemp("long") / "model.h5", "a;" * 60)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
@pytest.mark.parametrize("width", [20, 40, 80, 200])
@pytest.mark.parametrize("verb", ["inspect", "export"])
def test_a_paste_is_a_line_of_its_own_at_every_width(
    width: int, verb: str, long_named: Path, tmp_path: Path
) -> None:
    outputs = ["-o", tmp_path / "out.npz"] if verb == "export" else []
    text = on_terminal(width, verb, long_named, *outputs)
    lines = [line.strip() for line in text.splitlines()]
    options = [item.option for item in missing_settings(qmath.load(long_named))]
    assert len(options) > 2
    joined = [" ".join(options)] if verb == "export" else options
    for paste in (*joined, GET_CONFIG):
        assert lines.count(paste) == 1
    prose = [line for line in lines if line not in (*joined, GET_CONFIG)]
    assert not any("--quantizer" in line for line in prose)
