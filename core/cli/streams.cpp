#include "core/cli/streams.hpp"

#include <cerrno>
#include <csignal>
#include <cstring>

#include <fcntl.h>
#include <unistd.h>

#include <fmt/format.h>

namespace shardwright::cli {

void prepareStreams()
{
    for (const int stream : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
        if (::fcntl(stream, F_GETFD) < 0 && errno == EBADF)
            (void)::open("/dev/null", O_RDONLY); // the lowest free number; writing to it fails as to a closed one
    std::signal(SIGPIPE, SIG_IGN);
    std::signal(SIGXFSZ, SIG_IGN);
}

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
