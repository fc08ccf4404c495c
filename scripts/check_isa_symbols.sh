#!/bin/sh
# Objects of one instruction set share no function with others: the linker keeps one copy of a weak symbol, which then
# may hold instructions that the processor lacks. Usage: check_isa_symbols.sh BUILD_FOLDER (of a release build)
set -eu
found=$(find "$1" -path '*isa_*' -name '*.o' | wc -l)
if [ "$found" -eq 0 ]; then
    echo "check_isa_symbols: no objects of instruction sets below $1; build them first" >&2
    exit 2
fi
shared=$(find "$1" -path '*isa_*' -name '*.o' -exec nm -C {} + | grep -E ' [WVu] ' | grep -vE 'nybble::(plain|avx2|avx512)::' || true)
if [ -n "$shared" ]; then
    echo "check_isa_symbols: outside nybble::<isa>, make them static or always inline:" >&2
    echo "$shared" >&2
    exit 1
fi
echo "check_isa_symbols: $found objects, nothing shared"
