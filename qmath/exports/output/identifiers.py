"""Names that C, C++, Verilog and every file system take, made of the names of tensors."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping

__all__ = ["Identifiers", "UniqueNames"]

_LONGEST = 80
_LONGEST_DERIVED = 100  # a file system holds 255 bytes, with the suffixes
# C to C23, C++ to C++20; Verilog and SystemVerilog (IEEE 1800-2017); names that file systems of
# Windows reserve, and macros that compilers define.
_RESERVED_WORDS = """
    alignas alignof and and_eq asm atomic_cancel atomic_commit atomic_noexcept auto bitand bitor
    bool break case catch char char16_t char32_t char8_t class co_await co_return co_yield compl
    concept const const_cast consteval constexpr constinit continue decltype default delete do
    double dynamic_cast else enum explicit export extern false float for friend goto if inline int
    long mutable namespace new noexcept not not_eq nullptr operator or or_eq private protected
    public reflexpr register reinterpret_cast requires restrict return short signed sizeof static
    static_assert static_cast struct switch synchronized template this thread_local throw true try
    typedef typeid typename typeof typeof_unqual union unsigned using virtual void volatile wchar_t
    while xor xor_eq

    accept_on alias always always_comb always_ff always_latch assert assign assume automatic before
    begin bind bins binsof bit buf bufif0 bufif1 byte casex casez cell chandle checker clocking cmos
    config constraint context cover covergroup coverpoint cross deassign defparam design disable
    dist edge end endcase endchecker endclass endclocking endconfig endfunction endgenerate
    endgroup endinterface endmodule endpackage endprimitive endprogram endproperty endsequence
    endspecify endtable endtask event eventually expect extends final first_match force foreach
    forever fork forkjoin function generate genvar global highz0 highz1 iff ifnone ignore_bins
    illegal_bins implements implies import incdir include initial inout input inside instance
    integer interconnect interface intersect join join_any join_none large let liblist library
    local localparam logic macromodule matches medium modport module nand negedge nettype nexttime
    nmos nor noshowcancelled notif0 notif1 null output package packed parameter pmos posedge
    primitive priority program property pull0 pull1 pulldown pullup pulsestyle_ondetect
    pulsestyle_onevent pure rand randc randcase randsequence rcmos real realtime ref reg reject_on
    release repeat rnmos rpmos rtran rtranif0 rtranif1 s_always s_eventually s_nexttime s_until
    s_until_with scalared sequence shortint shortreal showcancelled small soft solve specify
    specparam string strong strong0 strong1 super supply0 supply1 sync_accept_on sync_reject_on
    table tagged task throughout time timeprecision timeunit tran tranif0 tranif1 tri tri0 tri1
    triand trior trireg type unique unique0 unsized until until_with untyped use uwire var vectored
    wait wait_order wand weak weak0 weak1 wildcard wire with within wor xnor

    aux com0 com1 com2 com3 com4 com5 com6 com7 com8 com9 con lpt0 lpt1 lpt2 lpt3 lpt4 lpt5 lpt6
    lpt7 lpt8 lpt9 nul prn

    arm errno i386 linux main unix
"""
_RESERVED = frozenset(_RESERVED_WORDS.split())


class Identifiers(Mapping[str, str]):
    """Identifiers by the names that they stand for, each unlike all others.

    An identifier has ASCII letters, digits and single underscores, begins with a letter, has at
    most 80 characters, and is no reserved word of C, C++, Verilog or Windows. No two are equal
    where case does not count, as in many file systems. The first of two names that would get the
    same has it, the others have a number after it.

    Parameters
    ----------
    names : iterable of str
        Any text; the order decides who gets a number.

    Examples
    --------
    >>> found = Identifiers(["conv1/kernel", "conv1:kernel", "2d/größe", "while"])
    >>> dict(found)
    {'conv1/kernel': 'conv1_kernel', 'conv1:kernel': 'conv1_kernel_2', '2d/größe': 't_2d_gro_e', \
'while': 'while_2'}
    >>> found.new("conv1/kernel size")
    'conv1_kernel_size'
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._taken = {*_RESERVED}
        self._found: dict[str, str] = {}
        for name in names:
            if name not in self._found:
                self._found[name] = self._new(name, _LONGEST)

    def __getitem__(self, name: str) -> str:
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def new(self, wanted: str) -> str:
        """Return one more identifier, like `wanted` and unlike all others, of up to 100 characters.

        There is room for an ending after the identifier of a name.
        """
        return self._new(wanted, _LONGEST_DERIVED)

    def _new(self, wanted: str, longest: int) -> str:
        plain = _plain(wanted)[:longest].rstrip("_")
        identifier, number = plain, 1
        while identifier.lower() in self._taken:
            number += 1
            ending = f"_{number}"
            identifier = plain[: longest - len(ending)].rstrip("_") + ending
        self._taken.add(identifier.lower())
        return identifier


def _plain(text: str) -> str:
    """Return `text` as an identifier, which may be a reserved word."""
    letters = "".join(
        c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c)
    )
    plain = re.sub(r"[^A-Za-z0-9]+", "_", letters).strip("_")
    if not plain[:1].isalpha():
        plain = f"t_{plain}".rstrip("_")
    return plain


class UniqueNames:
    """Names of a graph's parts, of which any text is one.

    Parameters
    ----------
    reserved : iterable of str
        Names that are taken.
    """

    def __init__(self, reserved: Iterable[str]) -> None:
        self._taken = {"", *reserved}

    def unique(self, wanted: str) -> str:
        """Return a name that nothing has, `wanted` if it is free."""
        name, number = wanted, 1
        while name in self._taken:
            number += 1
            name = f"{wanted}#{number}"
        self._taken.add(name)
        return name
