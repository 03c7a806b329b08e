#include "planner/cli/line_reader.hpp"

#include <cerrno>
#include <cstring>

#include <fcntl.h>
#include <unistd.h>

#include <fmt/format.h>

#include "core/diagnostics.hpp"

namespace shardwright::cli {

LineReader::LineReader(const std::string& path, const std::atomic<bool>& stop)
    : m_path(path), m_stop(stop), m_file(path == "-" ? STDIN_FILENO : ::open(path.c_str(), O_RDONLY | O_CLOEXEC))
{
    if (m_file < 0)
        throw InputError(path, "", fmt::format("cannot be opened for reading ({})", std::strerror(errno)),
                         "the path of a readable file, or - for standard input");
}

LineReader::~LineReader()
{
    if (m_file != STDIN_FILENO)
        ::close(m_file);
}

bool LineReader::fill()
{
    constexpr std::size_t kChunk = std::size_t{1} << 16;
    m_buffer.resize(kChunk);
    m_at = 0;
    for (;;) {
        const ssize_t count = m_stop ? 0 : ::read(m_file, m_buffer.data(), m_buffer.size());
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0)
            throw InputError(m_path, "", fmt::format("cannot be read ({})", std::strerror(errno)),
                             "the path of a readable file, or - for standard input");
        m_buffer.resize(static_cast<std::size_t>(count));
        return count > 0;
    }
}

LineReader::Outcome LineReader::next(std::string& line)
{
    line.clear();
    bool any = false;
    bool tooLong = false;
    for (;;) {
        if (m_stop)
            return Outcome::Stopped;
        if (m_at == m_buffer.size() && !fill()) {
            if (m_stop)
                return Outcome::Stopped;
            return tooLong ? Outcome::TooLong : any ? Outcome::Line : Outcome::End;
        }
        any = true;
        const std::size_t end = m_buffer.find('\n', m_at);
        const std::size_t stop = std::min(end, m_buffer.size());
        tooLong = tooLong || line.size() + (stop - m_at) > kLongestLine;
        if (tooLong)
            line.clear();
        else
            line.append(m_buffer, m_at, stop - m_at);
        m_at = end == std::string::npos ? m_buffer.size() : end + 1;
        if (end != std::string::npos)
            return tooLong ? Outcome::TooLong : Outcome::Line;
    }
}

} // namespace shardwright::cli
