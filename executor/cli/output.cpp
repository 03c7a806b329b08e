#include "executor/cli/output.hpp"

#include <cerrno>
#include <cstring>

#include <fcntl.h>
#include <unistd.h>

#include <fmt/format.h>

#include "executor/state/durable_file.hpp"

namespace shardwright::cli {

namespace {

/// False with errno set when not all can be written.
bool writeAll(int descriptor, std::string_view text)
{
    while (!text.empty()) {
        const ssize_t written = ::write(descriptor, text.data(), text.size());
        if (written >= 0)
            text.remove_prefix(static_cast<std::size_t>(written));
        else if (errno != EINTR)
            return false;
    }
    return true;
}

} // namespace

void occupyClosedStreams()
{
    for (const int stream : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
        if (::fcntl(stream, F_GETFD) < 0 && errno == EBADF)
            (void)::open("/dev/null", O_RDONLY); // the lowest free number; writing to it fails as to a closed one
}

void requireOutput(const std::string& path, bool replace)
{
    if (isFileThere(path) && !replace)
        throw InputError(path, "", "exists already", "another place, or --force to replace it");
    requireWritable(path);
}

void printOut(std::string_view text)
{
    if (writeAll(STDOUT_FILENO, text))
        return;
    if (errno == EPIPE)
        throw ClosedPipe();
    throw EnvironmentError(fmt::format("cannot write to standard output: {}", std::strerror(errno)));
}

void printErr(std::string_view text)
{
    (void)writeAll(STDERR_FILENO, text); // nowhere left to say that it failed
}

} // namespace shardwright::cli
