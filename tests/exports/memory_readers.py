"""Readers of exported memories that share nothing with qmath: Icarus Verilog, and parsers."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

needs_simulator = pytest.mark.skipif(
    not (shutil.which("iverilog") and shutil.which("vvp")),
    reason="there is no Icarus Verilog (the package iverilog)",
)

needs_ghdl = pytest.mark.skipif(
    not shutil.which("ghdl"), reason="there is no GHDL (the package ghdl)"
)


def simulated(folder: Path, *sources: Path) -> str:
    """Compile Verilog sources, run them in `folder`, and return what they print."""
    program = folder.with_name(f"{folder.name}.vvp")
    compiler = ["iverilog", "-g2001", "-Wall", "-Wno-timescale", "-o", program, *sources]
    for command in (compiler, ["vvp", "-n", program]):
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=False, timeout=120
        )
        assert not done.returncode, done.stdout + done.stderr
        assert not done.stderr
        assert "WARNING" not in done.stdout
    return done.stdout


def listed(folder: Path) -> dict[str, dict]:
    return json.loads((folder / "memories.json").read_text())


def as_arrays(folder: Path, words: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """Return the arrays by key, from the words of each file as unsigned numbers."""
    arrays = {}
    for name, entry in listed(folder).items():
        assert len(words[name]) == entry["depth"]
        each = entry["width"] // entry["values_per_word"]
        values = [
            word >> i * each & (1 << each) - 1
            for word in words[name]
            for i in range(entry["values_per_word"])
        ]
        size = int(np.prod(entry["shape"]))
        assert not any(values[size:])
        if entry["encoding"] == "two's complement":
            values = [value - (value >> each - 1 << each) for value in values]
        array = np.array(values[:size])
        if entry["encoding"].startswith("float"):
            array = array.astype(f"u{each // 8}").view(entry["encoding"])
        arrays[entry["array"]] = array.reshape(entry["shape"])
    return arrays


def simulator(folder: Path) -> dict[str, np.ndarray]:
    """Let Icarus Verilog read every memory; their names are the files'."""
    lines = ["module reader;"]
    body = []
    for name, entry in listed(folder).items():
        memory = name.partition(".")[0]
        depth = entry["depth"]
        lines.append(f"reg [{entry['width'] - 1}:0] {memory} [0:{depth - 1}];")
        body.append(f'$readmemh("{name}", {memory});')
        body.append(f'for (i = 0; i < {depth}; i = i + 1) $display("{name} %h", {memory}[i]);')
    text = "\n".join([*lines, "integer i;", "initial begin", *body, "end", "endmodule", ""])
    source = folder.with_name(f"{folder.name}_reader.v")
    source.write_text(text)
    words: dict[str, list[int]] = {}
    for line in simulated(folder, source).splitlines():
        name, word = line.split()
        words.setdefault(name, []).append(int(word, 16))
    return as_arrays(folder, words)


def vhdl(folder: Path) -> dict[str, np.ndarray]:
    """Let GHDL read every memory, each word with VHDL's hread, which takes nothing else."""
    calls = [
        f'show("{name}", {entry["width"]}, {entry["depth"]});'
        for name, entry in listed(folder).items()
    ]
    source = folder.with_name(f"{folder.name}_reader.vhd")
    source.write_text(_VHDL.replace("CALLS", "\n    ".join(calls)))
    library = folder.with_name(f"{folder.name}_library")
    library.mkdir()
    options = ["--std=08", f"--workdir={library}"]
    words: dict[str, list[int]] = {}
    for command in (["-a", *options, source], ["-c", *options, "-r", "reader"]):
        done = subprocess.run(
            ["ghdl", *command], cwd=folder, capture_output=True, text=True, check=False, timeout=120
        )
        assert not done.returncode, done.stdout + done.stderr
    for line in done.stdout.splitlines():
        name, word = line.split()
        words.setdefault(name, []).append(int(word, 16))
    return as_arrays(folder, words)


_VHDL = """\
library ieee;
use ieee.std_logic_1164.all;
use std.textio.all;
entity reader is end;
architecture test of reader is
begin
  process
    procedure show(name : string; width, depth : natural) is
      file memory : text open read_mode is name;
      variable row, told : line;
      variable word : std_logic_vector(width - 1 downto 0);
    begin
      for i in 1 to depth loop
        readline(memory, row);
        hread(row, word);
        assert row.all'length = 0 report name severity failure;
        write(told, name & " ");
        hwrite(told, word);
        writeline(output, told);
      end loop;
      assert endfile(memory) report name severity failure;
    end procedure;
  begin
    CALLS
    wait;
  end process;
end;
"""


def coe(folder: Path) -> dict[str, np.ndarray]:
    words = {}
    for name in listed(folder):
        text = re.sub(r"^;.*\n", "", (folder / name).read_text(encoding="ascii"), flags=re.M)
        found = re.fullmatch(
            r"memory_initialization_radix=16;\nmemory_initialization_vector=\n(.*);\n", text, re.S
        )
        words[name] = [int(word, 16) for word in found[1].split(",")]
    return as_arrays(folder, words)


def mif(folder: Path) -> dict[str, np.ndarray]:
    words = {}
    for name, entry in listed(folder).items():
        text = re.sub(r"--.*\n", "", (folder / name).read_text(encoding="ascii"))
        head, _, content = text.partition("CONTENT BEGIN\n")
        settings = dict(line.rstrip(";").split("=") for line in head.splitlines())
        assert settings == {
            "WIDTH": str(entry["width"]), "DEPTH": str(entry["depth"]),
            "ADDRESS_RADIX": "HEX", "DATA_RADIX": "HEX",
        }  # fmt: skip
        *rows, end = content.splitlines()
        assert end == "END;"
        pairs = [re.fullmatch(r"([0-9a-f]+) : ([0-9a-f]+);", row).groups() for row in rows]
        assert [int(address, 16) for address, _ in pairs] == list(range(len(pairs)))
        words[name] = [int(word, 16) for _, word in pairs]
    return as_arrays(folder, words)


READERS = {"mem": simulator, "hex": simulator, "coe": coe, "mif": mif}
PARAMS = [
    pytest.param(name, marks=needs_simulator if reader is simulator else ())
    for name, reader in READERS.items()
]
FORMATS = pytest.mark.parametrize("format", [param for param in PARAMS if param.values != ("hex",)])
