#pragma once

#include <atomic>
#include <string>

namespace shardwright::cli {

/// Lines of a file or of standard input ("-"), with memory bounded by the longest line allowed.
class LineReader {
public:
    enum class Outcome : std::uint8_t { Line, TooLong, End, Stopped };

    static constexpr std::size_t kLongestLine = std::size_t{64} << 20; // as readTextFile allows for a file

    /// InputError when the file cannot be opened. Reading ends as Stopped once `stop` is set.
    LineReader(const std::string& path, const std::atomic<bool>& stop);
    LineReader(const LineReader&) = delete;
    LineReader& operator=(const LineReader&) = delete;
    ~LineReader();

    /// The next line without its end, in `line`. TooLong: a line was skipped.
    Outcome next(std::string& line);

private:
    /// False at the end of the input, or when reading was stopped.
    bool fill();

    std::string m_path;
    const std::atomic<bool>& m_stop;
    int m_file;
    std::string m_buffer;
    std::size_t m_at = 0;
};

} // namespace shardwright::cli
