#!/bin/sh
# The compiler of mmcv 2.1.0's build: it asks for C++17, but the headers of torch 2.14 need C++20.
# Without debug information the build takes 7 minutes rather than 41, and the wheel 1.4 MB rather than 32.
for argument; do
    shift
    [ "$argument" = -std=c++17 ] && argument=-std=c++20
    set -- "$@" "$argument"
done
exec g++ "$@" -g0
