#pragma once

// What shardrun says, however its streams are.

#include <string>
#include <string_view>

#include "core/diagnostics.hpp"

namespace shardwright::cli {

/// The reader of standard output has gone: there is nobody to tell.
class ClosedPipe : public EnvironmentError {
public:
    ClosedPipe() : EnvironmentError("standard output is closed") {}
};

/// Files that the program opens must not get the numbers of streams that its caller closed: what is said would stand in
/// them. Before anything else.
void occupyClosedStreams();

/// Sees, before the work whose result goes there, that `path` can be written: InputError where a file is there and
/// `replace` is false.
void requireOutput(const std::string& path, bool replace);

/// All of `text`; ClosedPipe or EnvironmentError where it cannot be written.
void printOut(std::string_view text);
/// As far as it can be written.
void printErr(std::string_view text);

} // namespace shardwright::cli
