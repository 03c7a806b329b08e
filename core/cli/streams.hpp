#pragma once

// The standard streams of a program, whatever state its caller left them in.

#include <string_view>

#include "core/diagnostics.hpp"

namespace shardwright::cli {

/// The reader of standard output has gone: there is nobody to tell.
class ClosedPipe : public EnvironmentError {
public:
    ClosedPipe() : EnvironmentError("standard output is closed") {}
};

/// Before anything else: files that the program opens must not get the numbers of streams that its caller closed, or
/// what is said would stand in them; and a write that fails (a closed pipe, `ulimit -f`) is to be seen where it is
/// made instead of ending the program.
void prepareStreams();

/// All of `text`; false with errno set when not all can be written.
bool writeAll(int descriptor, std::string_view text);

/// All of `text`; ClosedPipe or EnvironmentError where it cannot be written.
void printOut(std::string_view text);

/// As far as it can be written.
void printErr(std::string_view text);

} // namespace shardwright::cli
